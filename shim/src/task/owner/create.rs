//! Create, and what is set up once the container exists.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

impl Owner {
    /// Goes on with a create of the image before: with the runtime at work, or from the beginning.
    pub(super) fn go_on_creating(&self, begun: Option<RestoredJob>) {
        let (launcher, mounts, events) = (
            self.launcher(&self.init),
            self.mounts.clone(),
            self.events.clone(),
        );
        self.later(async move {
            let register = |child| {
                let events = events.clone();
                async move {
                    let (stored, answer) = oneshot::channel();
                    let _ = events.send(Event::InitRegistered(child, stored)).await;
                    answer.await.unwrap_or(false)
                }
            };
            Event::CreateDone(match begun {
                Some(job) => launcher.create_on(job, !mounts.is_empty(), register).await,
                None => match launcher.options.write(&launcher.bundle) {
                    Ok(()) => launcher.create_again(mounts, register).await,
                    Err(error) => Err(Fault::unknown(format!(
                        "write the options into {}: {error}",
                        launcher.bundle.display()
                    ))),
                },
            })
        });
    }

    pub(super) fn begin_create(&mut self) {
        if let Some(images) = self.checkpoint.clone() {
            return self.begin_restore(images);
        }
        let (launcher, mounts, events) = (
            self.launcher(&self.init),
            self.mounts.clone(),
            self.events.clone(),
        );
        self.later(async move {
            let register = |child| {
                let events = events.clone();
                async move {
                    let (stored, answer) = oneshot::channel();
                    let _ = events.send(Event::InitRegistered(child, stored)).await;
                    answer.await.unwrap_or(false)
                }
            };
            Event::CreateDone(create(&launcher, mounts, register).await)
        });
    }

    /// Restores the container up to processes that stand still at the barrier: that is what the
    /// create of a checkpoint is. Start lets them run.
    fn begin_restore(&mut self, images: PathBuf) {
        let launcher = Launcher {
            checkpoint: Some(images),
            ..self.launcher(&self.init)
        };
        let (mounts, events) = (self.mounts.clone(), self.events.clone());
        let (go, may_go) = oneshot::channel();
        self.go = Some(go);
        tokio::spawn(async move {
            let may_go = Mutex::new(Some(may_go));
            let created = AtomicBool::new(false);
            let register = |child| {
                let may_go = may_go.lock().unwrap_or_else(PoisonError::into_inner).take();
                let (events, created) = (events.clone(), &created);
                async move {
                    let (stored, answer) = oneshot::channel();
                    let _ = events.send(Event::InitRegistered(child, stored)).await;
                    let (true, Some(may_go)) = (answer.await.unwrap_or(false), may_go) else {
                        return false;
                    };
                    let _ = events.send(Event::CreateDone(Ok(()))).await;
                    created.store(true, Ordering::SeqCst);
                    may_go.await.is_ok()
                }
            };
            let result = create(&launcher, mounts, register).await;
            // Err: the container is gone and with it the interest.
            let _ = events
                .send(if created.load(Ordering::SeqCst) {
                    Event::RestoreDone(result)
                } else {
                    Event::CreateDone(result)
                })
                .await;
        });
    }

    /// The runtime's restore has ended: as Start's answer, or before there was a Start.
    pub(super) fn restore_done(&mut self, result: Result<(), Fault>) {
        if matches!(self.underway, Some(Underway::Start(_))) {
            self.event(Event::StartDone(result));
        } else {
            self.restored = Some(result);
        }
    }

    pub(super) fn create_done(&mut self, result: Result<(), Fault>) {
        self.runtime.forget("create");
        let result = result.and_then(|()| self.model.create_done().map_err(Fault::from));
        match result {
            Ok(process) => {
                self.cgroup = self.find_cgroup(&process);
                self.oom_before = self.oom_kills();
                self.watch_oom();
                self.init.identity = ProcessIdentity::read(process.pid()).ok();
                self.journal = Some(Arc::new(Mutex::new(BundleJournal::create(&self.bundle))));
                self.settle();
                if let Some(reply) = self.created.take() {
                    reply.send(Ok(process.pid()));
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
                    reply.send(Err(fault));
                }
            }
        }
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

/// Keeps the options for `delete`, and creates.
async fn create<F>(
    launcher: &Launcher,
    mounts: Vec<Mount>,
    register: impl Fn(Child) -> F,
) -> Result<(), Fault>
where
    F: Future<Output = bool>,
{
    launcher.options.write(&launcher.bundle).map_err(|error| {
        Fault::unknown(format!(
            "write the options into {}: {error}",
            launcher.bundle.display()
        ))
    })?;
    launcher.create(mounts, register).await
}
