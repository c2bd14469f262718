//! Making changes known: journal, view, events, ledger.

use super::*;

impl Owner {
    /// Makes known what has changed: journal, view, events. Then goes on with what waited.
    pub(super) fn settle(&mut self) {
        if self.model.is_holding_exit() && !std::mem::replace(&mut self.holding, true) {
            self.later(async {
                tokio::time::sleep(LAUNCH_LIMIT).await;
                Event::LaunchesOverdue
            });
            self.later(async {
                tokio::time::sleep(hold_limit()).await;
                Event::HoldExpired
            });
        }
        let told = self.model.take_told();
        for one in &told {
            self.note_told(one);
        }
        self.refresh_view();
        for one in told {
            self.tell(one);
        }
        if matches!(self.model.init(), Init::Stopped(..))
            && let Some(reply) = self.deferred_delete.take()
        {
            self.pending.push_front(Command::Delete(None, reply));
        }
        self.next_pending();
    }

    pub(super) fn note(&self, entry: &Entry) {
        if let Some(journal) = &self.journal {
            note(journal, entry);
        }
    }

    pub(super) fn publish(&self, event: &Published) {
        match &self.journal {
            Some(journal) => self.shim.publisher.publish(event, journal),
            // Nobody has been told of this container yet.
            None => log::debug!("{}: {} before it exists", self.id, event.topic()),
        }
    }

    pub(super) fn note_told(&mut self, told: &Told<P>) {
        let at = Timestamp::now();
        let entry = match told {
            Told::Created(process) | Told::Restored(process) => {
                created_entry(Some(process.pid()), at)
            }
            Told::Stored => created_entry(None, at),
            Told::Started(_) => Entry::Started { at },
            Told::ExecAdded(_) => return,
            Told::ExecStarted(id, process) => Entry::ExecStarted {
                exec: id.clone(),
                pid: process.pid(),
                at,
            },
            Told::ExecExited(id, process, ended) => Entry::ExecExited {
                exec: id.clone(),
                pid: process.pid(),
                status: ended.status,
                at: ended.at,
            },
            Told::Exited(process, ended) => Entry::Exited {
                pid: process.pid(),
                status: ended.status,
                at: ended.at,
            },
            Told::Paused => Entry::Paused,
            Told::Resumed => Entry::Resumed,
            Told::Deleted(..) => Entry::Deleted,
        };
        self.note(&entry);
    }

    pub(super) fn tell(&mut self, told: Told<P>) {
        let container_id = self.id.to_string();
        let event = match told {
            Told::Created(process) => self.create_event(process.pid()),
            Told::Stored => self.create_event(0),
            // Told as created when it was images.
            Told::Restored(_) => return,
            Told::Started(process) => Published::Start(events::TaskStart {
                container_id,
                pid: process.pid(),
                ..events::TaskStart::default()
            }),
            Told::ExecAdded(id) => Published::ExecAdded(events::TaskExecAdded {
                container_id,
                exec_id: id.to_string(),
                ..events::TaskExecAdded::default()
            }),
            Told::ExecStarted(id, process) => Published::ExecStarted(events::TaskExecStarted {
                container_id,
                exec_id: id.to_string(),
                pid: process.pid(),
                ..events::TaskExecStarted::default()
            }),
            Told::ExecExited(id, process, ended) => {
                self.record_exec_end(&id, ended);
                if let Some(exec) = self.execs.get(&id) {
                    exec.side.exit.send_replace(Some(ended));
                }
                exit_event(container_id, id.to_string(), process.pid(), ended)
            }
            Told::Exited(process, ended) => {
                self.record_init_end(ended);
                self.init.exit.send_replace(Some(ended));
                self.announce_again_in(announce_again_after());
                exit_event(container_id.clone(), container_id, process.pid(), ended)
            }
            Told::Paused => Published::Paused(events::TaskPaused {
                container_id,
                ..events::TaskPaused::default()
            }),
            Told::Resumed => Published::Resumed(events::TaskResumed {
                container_id,
                ..events::TaskResumed::default()
            }),
            Told::Deleted(Some((process, ended))) => Published::Delete(events::TaskDelete {
                container_id,
                pid: process.pid(),
                exit_status: ended.status.shell_code(),
                exited_at: proto_time(ended.at),
                ..events::TaskDelete::default()
            }),
            Told::Deleted(None) => Published::Delete(events::TaskDelete {
                container_id,
                exited_at: no_time(),
                ..events::TaskDelete::default()
            }),
        };
        self.publish(&event);
    }

    fn create_event(&self, pid: u32) -> Published {
        Published::Create(events::TaskCreate {
            container_id: self.id.to_string(),
            bundle: self.bundle.display().to_string(),
            rootfs: self.mounts.clone(),
            io: MessageField::some(events::TaskIO {
                stdin: self.init.paths.stdin.clone(),
                stdout: self.init.paths.stdout.clone(),
                stderr: self.init.paths.stderr.clone(),
                terminal: self.init.paths.terminal,
                ..events::TaskIO::default()
            }),
            checkpoint: self
                .checkpoint
                .as_ref()
                .map_or_else(String::new, |images| images.display().to_string()),
            pid,
            ..events::TaskCreate::default()
        })
    }

    pub(super) fn record(&self, record: Record) {
        self.shim.scribe.write(self.whose(record));
    }

    fn whose(&self, record: Record) -> Record {
        record
            .of_container(Some(&self.shim.namespace), &self.id)
            .with_name(self.config.name.clone())
            .with_pod(self.config.pod.clone())
    }

    /// What is known of an OOM kill that may have brought an end of now.
    pub(super) fn oom(&self) -> Option<holdfast_record::reason::Oom> {
        self.oom_at.filter(|at| at.elapsed() < OOM_WINDOW)?;
        reason::oom_of(self.cgroup.as_ref()?, self.oom_before)
    }

    pub(super) fn record_init_end(&self, ended: Ended) {
        let case = self.case(ended, &self.init, None, true);
        let reason = case.likely();
        log::info!("{}: init ended: {}", self.id, ended.status);
        let record = end_record(Kind::Container, &reason, ended, &self.init);
        let termination_log = self.config.termination_log.clone();
        let scribe = &self.shim.scribe;
        scribe.write_end(self.whose(record), case, termination_log);
    }

    pub(super) fn record_exec_end(&self, id: &ExecId, ended: Ended) {
        let Some(exec) = self.execs.get(id) else {
            return;
        };
        let init = match self.model.init() {
            Init::Ending(process, init)
            | Init::Stopped(process, init)
            | Init::Deleting(Some((process, init))) => Some((process.pid(), Some(init.status))),
            // Init cannot be reaped before the last process of its pid namespace, so an exec
            // that goes down with it is seen first: look whether init is on its way.
            Init::Created(process) | Init::Starting(process, _) | Init::Running(process) => {
                (!self.init.asked.is_empty() || !is_alive(process))
                    .then(|| (process.pid(), None::<ExitStatus>))
            }
            Init::Creating(_)
            | Init::Stored
            | Init::Restoring(_)
            | Init::Deleting(None)
            | Init::Pausing(_)
            | Init::Paused(_)
            | Init::Resuming(_)
            | Init::Deleted => None,
        };
        let case = self.case(ended, &exec.side, init, false);
        let record = end_record(Kind::Exec, &case.likely(), ended, &exec.side).of_exec(id);
        self.shim.scribe.write_end(self.whose(record), case, None);
    }

    fn case(
        &self,
        ended: Ended,
        side: &Side,
        init: Option<(u32, Option<ExitStatus>)>,
        is_init: bool,
    ) -> Case {
        let cgroup = self.cgroup.as_ref();
        Case {
            ended,
            known: Known {
                pid: side.identity.map_or(0, |identity| identity.pid),
                asked: side.asked.clone(),
                oom: if ended.status.success() {
                    None
                } else {
                    self.oom()
                },
                init,
                is_init,
                cgroup: cgroup.map_or_else(Vec::new, |cgroup| {
                    cgroup.directories().map(Into::into).collect()
                }),
            },
        }
    }

    pub(super) fn refresh_view(&self) {
        let (status, process, ended) = match self.model.init() {
            // Not there yet, or not any more.
            Init::Creating(_) | Init::Deleted => {
                self.show.send_replace(None);
                return;
            }
            Init::Created(process) | Init::Starting(process, _) => {
                (Status::Created, Some(process), None)
            }
            // What is restored is shown with its process when it runs.
            Init::Stored | Init::Restoring(_) | Init::Deleting(None) => {
                (Status::Created, None, None)
            }
            Init::Running(process) | Init::Ending(process, _) => {
                (Status::Running, Some(process), None)
            }
            Init::Pausing(process) => (Status::Pausing, Some(process), None),
            Init::Paused(process) | Init::Resuming(process) => {
                (Status::Paused, Some(process), None)
            }
            Init::Stopped(process, ended) | Init::Deleting(Some((process, ended))) => {
                (Status::Stopped, Some(process), Some(*ended))
            }
        };
        let execs = self
            .model
            .execs()
            .iter()
            .filter_map(|(id, exec)| Some((id.clone(), self.exec_view(id, exec, status)?)))
            .collect();
        self.show.send_replace(Some(Arc::new(View {
            bundle: self.bundle.clone(),
            init: ProcessView {
                status,
                process: process.cloned(),
                ended,
                exit: self.init.exit.subscribe(),
                stdio: Arc::clone(&self.init.paths),
            },
            execs,
            cgroup: self.cgroup.clone(),
        })));
    }

    pub(super) fn exec_view(
        &self,
        id: &ExecId,
        exec: &Exec<P>,
        container: Status,
    ) -> Option<ProcessView> {
        let side = &self.execs.get(id)?.side;
        let (status, process, ended) = match exec {
            Exec::Created | Exec::Starting | Exec::Registered(..) | Exec::Deleting(None) => {
                (Status::Created, None, None)
            }
            Exec::Running(process) => {
                // A frozen container's exec processes are as frozen as it is.
                let status = match container {
                    Status::Paused | Status::Pausing => container,
                    Status::Created | Status::Running | Status::Stopped => Status::Running,
                };
                (status, Some(Arc::clone(process)), None)
            }
            Exec::Stopped(process, ended) | Exec::Deleting(Some((process, ended))) => {
                (Status::Stopped, Some(Arc::clone(process)), Some(*ended))
            }
        };
        Some(ProcessView {
            status,
            process,
            ended,
            exit: side.exit.subscribe(),
            stdio: Arc::clone(&side.paths),
        })
    }
}

pub(super) fn created_entry(pid: Option<u32>, at: Timestamp) -> Entry {
    Entry::Created {
        pid,
        shim: std::process::id(),
        shim_start: ProcessIdentity::read(std::process::id())
            .ok()
            .map(|identity| identity.start_time),
        at,
    }
}

fn is_alive(process: &P) -> bool {
    ProcessIdentity::read(process.pid()).is_ok_and(|identity| identity.is_alive())
}

fn end_record(kind: Kind, reason: &Reason, ended: Ended, side: &Side) -> Record {
    let mut record = Record::new(kind, reason, ended.at).with_status(ended.status);
    if let Some(identity) = side.identity {
        record = record.with_process(identity);
    }
    if let Some(started) = side.started {
        record = record.with_start(started);
    }
    record
}

pub(super) fn exit_event(container_id: String, id: String, pid: u32, ended: Ended) -> Published {
    Published::Exit(events::TaskExit {
        container_id,
        id,
        pid,
        exit_status: ended.status.shell_code(),
        exited_at: proto_time(ended.at),
        ..events::TaskExit::default()
    })
}
