//! What the owner's helpers and the reaper report.

use super::*;

impl Owner {
    pub(super) fn event(&mut self, event: Event) {
        match event {
            Event::InitRegistered(child, stored) => {
                let process = Arc::clone(&child.process);
                self.model.init_registered(child.process);
                self.watch_end(child.ended, |ended| Event::InitEnded(process, ended));
                let _ = stored.send(true);
            }
            Event::InitEnded(process, ended) => {
                forget_end(process.pid());
                // Not of what a failed restore had made: nobody was told of it.
                let current = self.model.init().process();
                if !current.is_some_and(|current| Arc::ptr_eq(current, &process)) {
                    return;
                }
                self.tell_oom();
                if self.config.kill_all_on_exit {
                    self.kill_rest();
                }
                self.model.init_ended(ended);
            }
            Event::CreateDone(result) => self.create_done(result),
            Event::StartDone(result) => self.start_done(result),
            Event::PauseDone(result) => {
                let done = self.model.pause_done(result.is_ok()).map_err(Fault::from);
                self.settle();
                if let Some(Underway::Pause(reply)) = self.underway.take() {
                    reply.send(result.and(done));
                }
            }
            Event::ResumeDone(result) => {
                let done = self.model.resume_done(result.is_ok()).map_err(Fault::from);
                self.settle();
                if let Some(Underway::Resume(reply)) = self.underway.take() {
                    reply.send(result.and(done));
                }
            }
            Event::UpdateDone(result) => {
                self.runtime.forget("checkpoint");
                if let Some(Underway::Update(reply)) = self.underway.take() {
                    reply.send(result);
                }
            }
            Event::DeleteDone(result) => self.delete_done(result),
            Event::DeleteOverdue => {
                if let Some(reply) = self.deferred_delete.take() {
                    let init = match self.model.init() {
                        Init::Created(process) => Some(process.pid()),
                        _ => None,
                    };
                    tokio::spawn(async move {
                        let state = match init {
                            Some(pid) => describe(pid).await,
                            None => "waiting for its exec processes".to_owned(),
                        };
                        reply.send(Err(Fault::new(
                            Code::FAILED_PRECONDITION,
                            format!(
                                "delete: the killed init process has not ended within {END_LIMIT:?}: {state}: failed precondition"
                            ),
                        )));
                    });
                }
            }
            Event::ExecRegistered(id, child, stored) => {
                let known = matches!(self.model.exec(&id), Some(Exec::Starting));
                if known {
                    let (process, exec) = (Arc::clone(&child.process), id.clone());
                    self.watch_end(child.ended, move |ended| {
                        Event::ExecEnded(exec, process, ended)
                    });
                    self.model.exec_registered(&id, child.process);
                } else {
                    let _ = child.process.signal(libc::SIGKILL);
                }
                let _ = stored.send(known);
            }
            Event::ExecEnded(id, process, ended) => {
                forget_end(process.pid());
                self.tell_oom();
                let current = match self.model.exec(&id) {
                    Some(Exec::Registered(current, _) | Exec::Running(current)) => {
                        Arc::ptr_eq(current, &process)
                    }
                    Some(
                        Exec::Created | Exec::Starting | Exec::Stopped(..) | Exec::Deleting(_),
                    )
                    | None => false,
                };
                if current {
                    self.model.exec_ended(&id, ended);
                }
            }
            Event::ExecDone(id, result) => {
                // Not of a launch that has been given up meanwhile.
                if self
                    .execs
                    .get(&id)
                    .is_some_and(|exec| exec.launch.is_some())
                {
                    self.exec_done(&id, result);
                }
            }
            Event::ExecCleared(id) => {
                self.model.exec_deleted(&id);
                resume::remove(&keep::spec_key(&self.id, &id));
                let _ = std::fs::remove_file(launch::pid_file(&self.bundle, &id));
                if let Some(exec) = self.execs.remove(&id)
                    && let Some(reply) = exec.delete
                {
                    let ended = *exec.side.exit.borrow();
                    let pid = exec.side.identity.map_or(0, |identity| identity.pid);
                    reply.send(Ok(Remains { pid, ended }));
                }
            }
            Event::LaunchesOverdue => self.give_up_launches(),
            Event::HoldExpired => {
                if self.model.is_holding_exit() {
                    let late: Vec<(ExecId, Option<u32>)> = self
                        .model
                        .unfinished_execs()
                        .map(|(id, exec)| match exec {
                            Exec::Running(process) | Exec::Registered(process, _) => {
                                (id.clone(), Some(process.pid()))
                            }
                            Exec::Created
                            | Exec::Starting
                            | Exec::Stopped(..)
                            | Exec::Deleting(_) => (id.clone(), None),
                        })
                        .collect();
                    for (id, pid) in late {
                        self.outlived(id, pid);
                    }
                    self.model.hold_expired();
                }
            }
            Event::OomSeen => self.tell_oom(),
            Event::Unclaimed(after) => self.announce_again(after),
        }
    }

    /// Writes down that an exec process was not waited for any longer, and what it does.
    fn outlived(&self, exec: ExecId, pid: Option<u32>) {
        let (shim, container) = (Arc::clone(&self.shim), self.id.clone());
        let (name, pod) = (self.config.name.clone(), self.config.pod.clone());
        tokio::spawn(async move {
            let process = match pid {
                Some(pid) => describe(pid).await,
                None => "its runtime has not answered".to_owned(),
            };
            let reason = Reason::OutlivedContainer {
                waited: hold_limit(),
                process,
            };
            let record = Record::new(Kind::Exec, &reason, Timestamp::now())
                .of_container(Some(&shim.namespace), &container)
                .with_name(name)
                .with_pod(pod)
                .of_exec(&exec);
            shim.scribe.write(record);
        });
    }

    /// Sees to it that the exit is told again should nobody delete the container.
    pub(super) fn announce_again_in(&self, after: Duration) {
        if after.is_zero() {
            return;
        }
        let events = self.events.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = events.closed() => {}
                () = tokio::time::sleep(after) => {
                    let _ = events.send(Event::Unclaimed(after)).await;
                }
            }
        });
    }

    fn announce_again(&self, after: Duration) {
        let (Init::Stopped(process, ended), Some(journal)) = (self.model.init(), &self.journal)
        else {
            return;
        };
        // What containerd has not taken yet need not be told twice.
        if Publisher::has_told(journal) {
            log::info!(
                "{}: stopped for {after:?} and not deleted: its exit is told again",
                self.id
            );
            let id = self.id.to_string();
            self.publish(&tell::exit_event(id.clone(), id, process.pid(), *ended));
        }
        self.announce_again_in((after * 2).min(ANNOUNCE_MAX));
    }

    /// Ends starts of exec processes that go on although init has ended.
    pub(super) fn give_up_launches(&mut self) {
        // By the launches and not by the model, which forgets its execs with the container.
        let late: Vec<ExecId> = self
            .execs
            .iter()
            .filter(|(_, exec)| exec.launch.is_some())
            .map(|(id, _)| id.clone())
            .collect();
        for id in late {
            log::warn!(
                "{}: giving up the start of exec {id}: init has ended",
                self.id
            );
            if let Some(launch) = self.execs.get_mut(&id).and_then(|exec| exec.launch.take()) {
                launch.abort();
            }
            let fault = Fault::new(
                Code::FAILED_PRECONDITION,
                format!(
                    "container {} init process is not running: failed precondition",
                    self.id
                ),
            );
            self.exec_done(&id, Err(fault));
        }
    }

    pub(super) fn start_done(&mut self, result: Result<(), Fault>) {
        self.runtime.forget("start");
        self.runtime.forget("restore");
        let process = self.model.init().process().cloned();
        if let Init::Restoring(made) = self.model.init().clone() {
            self.restore_done(made, result.is_ok());
        }
        let done = self.model.start_done(result.is_ok()).map_err(Fault::from);
        let result = result.and(done);
        let result = result.map_err(|fault| {
            let reason = fault.reason.as_deref().cloned();
            let reason = reason.unwrap_or_else(|| Reason::StartFailed {
                text: fault.text.clone(),
            });
            self.record(Record::new(Kind::Container, &reason, Timestamp::now()));
            fault.with_code(&reason)
        });
        if result.is_ok() {
            self.init.started = Some(Timestamp::now());
        }
        self.settle();
        if let Some(Underway::Start(reply)) = self.underway.take() {
            reply.send(result.map(|()| process.map_or(0, |process| process.pid())));
        }
    }

    /// What was made of a checkpoint's images, before the container is told to run.
    fn restore_done(&mut self, made: Option<(P, Option<Ended>)>, success: bool) {
        match made {
            Some((process, _)) if success => self.has_process(&process),
            // A process whose start failed after it was made must not stay.
            Some((process, None)) => drop(process.signal(libc::SIGKILL)),
            Some((_, Some(_))) | None => {}
        }
        if !success {
            // Fresh ends for a start that is tried again.
            self.init.io = Arc::default();
        }
    }

    pub(super) fn exec_done(&mut self, id: &ExecId, result: Result<(), Fault>) {
        self.runtime.forget(&launch::exec_job(id));
        // A process whose start failed after it was made must not stay.
        if result.is_err()
            && let Some(Exec::Registered(process, None)) = self.model.exec(id)
        {
            let _ = process.signal(libc::SIGKILL);
        }
        let outcome = self
            .model
            .exec_start_done(id, result.is_ok())
            .map_err(Fault::from);
        // The runtime's error says more than the model's refusal.
        let mut outcome = result.and(outcome);
        if let Some(exec) = self.execs.get_mut(id) {
            match &mut outcome {
                Ok(process) => {
                    exec.side.started = Some(Timestamp::now());
                    exec.side.identity =
                        ProcessIdentity::read(process.pid())
                            .ok()
                            .or(Some(ProcessIdentity {
                                pid: process.pid(),
                                start_time: 0,
                            }));
                }
                Err(fault) => {
                    // Fresh ends for a start that is tried again.
                    exec.side.io = Arc::default();
                    let reason = fault.reason.as_deref().cloned().unwrap_or_else(|| {
                        if fault.code == Code::DEADLINE_EXCEEDED {
                            Reason::ExecTimedOut(timed_out(fault, exec.began))
                        } else {
                            Reason::ExecFailed {
                                text: fault.text.clone(),
                            }
                        }
                    });
                    let record = Record::new(Kind::Exec, &reason, Timestamp::now()).of_exec(id);
                    self.record(record);
                    *fault = fault.clone().with_code(&reason);
                }
            }
        }
        self.settle();
        let start = self.execs.get_mut(id).and_then(|exec| {
            exec.launch = None;
            exec.start.take()
        });
        if let Some(reply) = start {
            reply.send(outcome.map(|process| process.pid()));
        }
    }

    pub(super) fn delete_done(&mut self, result: Result<Vec<String>, Fault>) {
        self.runtime.forget("delete");
        let remains = match self.model.init() {
            Init::Deleting(Some((process, ended))) => Remains {
                pid: process.pid(),
                ended: Some(*ended),
            },
            _ => Remains {
                pid: 0,
                ended: None,
            },
        };
        let unseen = Ended {
            status: UNSEEN,
            at: Timestamp::now(),
        };
        if result.is_ok() {
            for (id, exec) in self.model.execs() {
                if let Exec::Running(process) = exec {
                    log::error!(
                        "{}: exec {id} (process {}) would not end; its exit is told as {UNSEEN}",
                        self.id,
                        process.pid()
                    );
                }
            }
        }
        self.model.delete_done(result.is_ok(), unseen);
        self.settle();
        if let (Ok(_), Some(journal)) = (&result, &self.journal) {
            self.shim.publisher.bundle_goes(&self.id, journal);
        }
        let answer = match result {
            Ok(detached) => {
                if !detached.is_empty() {
                    let reason = Reason::CleanupIncomplete { left: detached };
                    self.record(Record::new(Kind::Container, &reason, Timestamp::now()));
                }
                Ok(remains)
            }
            Err(fault) => {
                log::error!("{}: {}", self.id, fault.text);
                Err(self.not_deleted(fault))
            }
        };
        if let Some(Underway::Delete(reply)) = self.underway.take() {
            reply.send(answer);
        }
    }

    /// Writes down why the container could not be deleted; once, however often containerd tries again.
    fn not_deleted(&mut self, fault: Fault) -> Fault {
        let reason = fault.reason.as_deref().cloned();
        let reason = reason.unwrap_or_else(|| Reason::RuntimeFailed {
            operation: "delete the container".to_owned(),
            status: None,
            text: fault.text.clone(),
        });
        if self.delete_failed.as_ref() != Some(&fault.text) {
            self.delete_failed = Some(fault.text.clone());
            self.record(Record::new(Kind::Runtime, &reason, Timestamp::now()));
        }
        fault.with_code(&reason)
    }

    /// Kills what is left in the cgroup when init has ended and shares its pid namespace.
    pub(super) fn kill_rest(&self) {
        let Some(cgroup) = self.cgroup.clone() else {
            return;
        };
        let id = self.id.clone();
        tokio::task::spawn_blocking(move || {
            let killed = cgroup.signal_all(libc::SIGKILL, Instant::now() + KILL_ALL_LIMIT);
            if let Err(error) = killed.and_then(|()| cgroup.thaw_all())
                && !error.is_gone()
            {
                log::warn!("{id}: kill the rest of the container: {}", chain(&error));
            }
        });
    }
}
