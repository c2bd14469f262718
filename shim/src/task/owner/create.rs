//! Create, and what is set up once the container exists.

use super::*;

impl Owner {
    /// Goes on with a create of the image before: with the runtime at work, or from the beginning.
    pub(super) fn go_on_creating(&self, begun: Option<RestoredJob>) {
        let Some(job) = begun else {
            let (launcher, mounted) = (self.launcher(&self.init), !self.mounts.is_empty());
            return self.run_create(async move { launcher.undo(mounted).await });
        };
        let (launcher, mounted) = (self.launcher(&self.init), !self.mounts.is_empty());
        let events = self.events.clone();
        self.later(async move {
            let register = |child| register(&events, child);
            Event::CreateDone(launcher.create_on(job, mounted, register).await)
        });
    }

    pub(super) fn begin_create(&self) {
        self.run_create(std::future::ready(()));
    }

    /// Creates the container, after `first`. Of one that comes from a checkpoint the images stay
    /// what they are until Start (docs/0011).
    fn run_create(&self, first: impl Future<Output = ()> + Send + 'static) {
        let (launcher, mounts) = (self.launcher(&self.init), self.mounts.clone());
        let (events, stored) = (self.events.clone(), self.checkpoint.is_some());
        self.later(async move {
            first.await;
            let written = launcher.options.write(&launcher.bundle).map_err(|error| {
                Fault::unknown(format!(
                    "write the options into {}: {error}",
                    launcher.bundle.display()
                ))
            });
            Event::CreateDone(match written {
                Err(fault) => Err(fault),
                Ok(()) if stored => launcher.create_rootfs(mounts).await,
                Ok(()) => {
                    let register = |child| register(&events, child);
                    launcher.create(mounts, register).await
                }
            })
        });
    }

    /// Makes processes of the checkpoint's images, or goes on with it.
    pub(super) fn run_restore(&self, images: PathBuf, begun: Option<RestoredJob>) {
        let (launcher, events) = (self.launcher(&self.init), self.events.clone());
        self.later(async move {
            let register = |child| register(&events, child);
            Event::StartDone(match begun {
                Some(job) => launcher.restore_on(job, register).await,
                None => launcher.restore(&images, register).await,
            })
        });
    }

    pub(super) fn create_done(&mut self, result: Result<(), Fault>) {
        self.runtime.forget("create");
        let result = result.and_then(|()| {
            if self.checkpoint.is_some() {
                self.model.stored();
                return Ok(None);
            }
            self.model.create_done().map(Some).map_err(Fault::from)
        });
        match result {
            Ok(process) => {
                if let Some(process) = &process {
                    self.has_process(process);
                }
                self.journal = Some(Arc::new(Mutex::new(BundleJournal::create(&self.bundle))));
                self.settle();
                if let Some(reply) = self.created.take() {
                    // At the protobuf border 0 stands for no process.
                    reply.send(Ok(process.map_or(0, |process| process.pid())));
                }
            }
            Err(fault) => {
                // A process that was made and whose container is not to be must not stay.
                if let Init::Creating(Some((process, None))) = self.model.init() {
                    let _ = process.signal(libc::SIGKILL);
                }
                self.model.create_failed();
                let reason = fault.reason.as_deref().cloned().unwrap_or_else(|| {
                    if fault.code == Code::DEADLINE_EXCEEDED {
                        Reason::CreateTimedOut(timed_out(&fault, self.began))
                    } else {
                        Reason::CreateStepFailed {
                            step: "create".to_owned(),
                            text: fault.text.clone(),
                        }
                    }
                });
                self.record(Record::new(Kind::Container, &reason, Timestamp::now()));
                log::error!("{}: {}", self.id, fault.text);
                if let Some(reply) = self.created.take() {
                    reply.send(Err(fault.with_code(&reason)));
                }
            }
        }
    }

    /// Init is there: what is looked up once of it.
    pub(super) fn has_process(&mut self, process: &P) {
        self.cgroup = self.find_cgroup(process);
        self.oom_before = self.oom_kills();
        self.watch_oom();
        self.init.identity = ProcessIdentity::read(process.pid()).ok();
    }

    pub(super) fn find_cgroup(&self, process: &P) -> Option<Arc<Cgroup>> {
        let pid = i32::try_from(process.pid()).ok()?;
        let hierarchies = self.shim.hierarchies.as_ref()?;
        Cgroup::of_process(hierarchies, pid)
            .inspect_err(|error| log::warn!("{}: no cgroup: {}", self.id, chain(error)))
            .ok()
            .map(Arc::new)
    }

    pub(super) fn oom_kills(&self) -> u64 {
        self.cgroup
            .as_ref()
            .and_then(|cgroup| cgroup.oom_kills().ok().flatten())
            .map_or(0, |kills| kills.total)
    }

    pub(super) fn watch_oom(&mut self) {
        self.oom_told = self.oom_before;
        let Some(Ok(Some(source))) = self.cgroup.as_ref().map(|cgroup| cgroup.oom_events()) else {
            return;
        };
        let Ok((source, interest)) = sys::watch_oom(source) else {
            return;
        };
        let events = self.events.clone();
        tokio::spawn(async move {
            loop {
                let gone = events.closed();
                let ready = tokio::select! {
                    ready = source.ready(interest) => ready,
                    () = gone => return,
                };
                let Ok(mut ready) = ready else { return };
                ready.clear_ready();
                let over = source.get_ref().0.acknowledge().is_err();
                if events.send(Event::OomSeen).await.is_err() || over {
                    return;
                }
            }
        });
    }

    pub(super) fn tell_oom(&mut self) {
        let kills = self.oom_kills();
        if kills > self.oom_told && self.journal.is_some() {
            self.oom_told = kills;
            self.oom_at = Some(Instant::now());
            self.publish(&Published::Oom(events::TaskOOM {
                container_id: self.id.to_string(),
                ..events::TaskOOM::default()
            }));
        }
    }
}

/// Gives the owner its init process; whether it may run.
async fn register(events: &mpsc::Sender<Event>, child: Child) -> bool {
    let (stored, answer) = oneshot::channel();
    let _ = events.send(Event::InitRegistered(child, stored)).await;
    answer.await.unwrap_or(false)
}
