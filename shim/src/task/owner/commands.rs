//! What RPCs ask of the owner, and who does it; starts.

use super::*;

impl Owner {
    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Start(Some(id), reply) => self.start_exec(&id, reply),
            Command::Exec(id, paths, spec, reply) => {
                let result = self.model.exec_add(id.clone()).map_err(Fault::from);
                if result.is_ok() {
                    let exec = ExecSide {
                        side: Side::new(paths),
                        spec,
                        start: None,
                        began: Instant::now(),
                        launch: None,
                        delete: None,
                    };
                    if resume::is_on() {
                        resume::put(&keep::spec_key(&self.id, &id), &exec.spec);
                    }
                    self.execs.insert(id, exec);
                    self.settle();
                }
                reply.send(result);
            }
            Command::Kill {
                exec,
                signal,
                all,
                reply,
            } => self.kill(exec, signal, all, reply),
            Command::Delete(Some(id), reply) => self.delete_exec(&id, reply),
            Command::Resize(exec, rows, columns, reply) => {
                reply.send(self.resize(exec.as_ref(), rows, columns));
            }
            Command::CloseIo(exec, reply) => {
                let result = self.side(exec.as_ref()).map(|side| side.io.close_stdin());
                reply.send(result);
            }
            Command::Start(None, _)
            | Command::Delete(None, _)
            | Command::Pause(_)
            | Command::Resume(_)
            | Command::Update(..)
            | Command::Checkpoint(..) => {
                if self.pending.len() >= MAX_PENDING {
                    refuse(
                        command,
                        &Fault::new(
                            Code::RESOURCE_EXHAUSTED,
                            "too many operations wait for this container",
                        ),
                    );
                } else {
                    self.pending.push_back(command);
                    self.next_pending();
                }
            }
        }
    }

    /// Begins operations of the container until one is on its way.
    pub(super) fn next_pending(&mut self) {
        while self.underway.is_none()
            && let Some(command) = self.pending.pop_front()
        {
            match command {
                Command::Start(None, reply) => self.start(reply),
                Command::Delete(None, reply) => self.delete(reply),
                Command::Pause(reply) => self.pause(reply),
                Command::Resume(reply) => self.resume(reply),
                Command::Update(resources, reply) => self.update(resources, reply),
                Command::Checkpoint(request, reply) => self.checkpoint(request, reply),
                other => self.command(other),
            }
        }
    }

    pub(super) fn side(&self, exec: Option<&ExecId>) -> Result<&Side, Fault> {
        match exec {
            None => Ok(&self.init),
            Some(id) => self
                .execs
                .get(id)
                .map(|exec| &exec.side)
                .ok_or_else(|| Fault::not_found(&format!("process does not exist {id}"))),
        }
    }

    pub(super) fn start(&mut self, reply: Reply<u32>) {
        if let Err(refusal) = self.model.begin_start() {
            reply.send(Err(refusal.into()));
            return;
        }
        self.underway = Some(Underway::Start(reply));
        match self.checkpoint.clone() {
            Some(images) => self.run_restore(images, None),
            None => self.run_start(None),
        }
    }

    /// Runs the runtime's `start`, or goes on with it.
    pub(super) fn run_start(&self, begun: Option<RestoredJob>) {
        let (runtime, reaper) = (self.runtime.clone(), Arc::clone(&self.shim.reaper));
        self.later(async move {
            let result = match begun {
                Some(job) => runtime.run_on(job).await,
                None => {
                    let call = Call::new("start", start_limit()).kept("start");
                    runtime.run(&reaper, call).await
                }
            };
            Event::StartDone(result.map_err(|error| error.fault("OCI runtime start failed")))
        });
    }

    pub(super) fn start_exec(&mut self, id: &ExecId, reply: Reply<u32>) {
        if let Err(refusal) = self.model.exec_begin_start(id) {
            reply.send(Err(refusal.into()));
            return;
        }
        let Some(exec) = self.execs.get_mut(id) else {
            reply.send(Err(Fault::not_found(&format!(
                "process does not exist {id}"
            ))));
            return;
        };
        exec.start = Some(reply);
        self.run_exec(id, None);
    }

    /// Runs the runtime's `exec`, or goes on with it.
    pub(super) fn run_exec(&mut self, id: &ExecId, begun: Option<RestoredJob>) {
        let Some(exec) = self.execs.get_mut(id) else {
            return;
        };
        exec.began = Instant::now();
        let (spec, launcher) = (
            exec.spec.clone(),
            self.execs.get(id).map(|exec| self.launcher(&exec.side)),
        );
        let Some(launcher) = launcher else {
            return;
        };
        let (events, exec) = (self.events.clone(), id.clone());
        let launch = self.later(async move {
            let id = exec;
            let register = |child| {
                let (events, id) = (events.clone(), id.clone());
                async move {
                    let (stored, answer) = oneshot::channel();
                    let _ = events.send(Event::ExecRegistered(id, child, stored)).await;
                    answer.await.unwrap_or(false)
                }
            };
            let result = match begun {
                Some(job) => launcher.exec_on(&id, job, register).await,
                None => launcher.exec(&id, &spec, register).await,
            };
            Event::ExecDone(id, result)
        });
        if let Some(exec) = self.execs.get_mut(id) {
            exec.launch = Some(launch);
        }
    }

    pub(super) fn resize(
        &self,
        exec: Option<&ExecId>,
        rows: u16,
        columns: u16,
    ) -> Result<(), Fault> {
        let side = self.side(exec)?;
        // Of init clients expect no error: the resize of a window may come after its end.
        let stopped = exec.is_some_and(|id| {
            matches!(
                self.model.exec(id),
                Some(Exec::Stopped(..) | Exec::Deleting(_))
            )
        });
        if stopped {
            return Err(Fault::unknown("cannot resize a stopped container"));
        }
        side.io.resize(rows, columns).map_err(|error| {
            Fault::unknown(format!(
                "resize the terminal to {rows} x {columns}: {error}"
            ))
        })
    }
}

fn refuse(command: Command, fault: &Fault) {
    match command {
        Command::Start(_, reply) => reply.send(Err(fault.clone())),
        Command::Delete(_, reply) => reply.send(Err(fault.clone())),
        Command::Exec(_, _, _, reply)
        | Command::Kill { reply, .. }
        | Command::Pause(reply)
        | Command::Resume(reply)
        | Command::Update(_, reply)
        | Command::Checkpoint(_, reply)
        | Command::Resize(_, _, _, reply)
        | Command::CloseIo(_, reply) => reply.send(Err(fault.clone())),
    }
}
