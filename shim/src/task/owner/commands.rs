//! What RPCs ask of the owner.

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

    pub(super) fn kill(&mut self, exec: Option<ExecId>, signal: i32, all: bool, reply: Reply<()>) {
        if !(0..=64).contains(&signal) {
            reply.send(Err(Fault::invalid(format!("signal {signal}"))));
            return;
        }
        let again = reply.request().is_some_and(|request| {
            self.killing.contains(&request) || resume::has(&request.signalled_key())
        });
        if again && all && signal != libc::SIGKILL {
            reply.send(Err(Fault::new(
                Code::UNAVAILABLE,
                format!("the shim failed while signal {signal} was being sent to all processes: some may have got it"),
            )));
            return;
        }
        let process = match self.target(exec.as_ref()) {
            Ok(process) => process,
            // Asked by a request that the image before has carried out.
            Err(_) if again => {
                reply.send(Ok(()));
                return;
            }
            Err(fault) => {
                reply.send(Err(fault));
                return;
            }
        };
        let asked = Asked {
            rpc: Rpc::Kill,
            signal: Signal::new(signal),
            at: Timestamp::now(),
        };
        // Before the signal, so that the end it brings finds it; signal 0 ends nothing.
        if signal != 0 {
            let side = match &exec {
                Some(id) => self.execs.get_mut(id).map(|exec| &mut exec.side),
                None => Some(&mut self.init),
            };
            if let Some(side) = side {
                side.asked.push(asked);
                // The first (the polite one) and the latest are what a reason is made of.
                if side.asked.len() > 8 {
                    side.asked.remove(1);
                }
            }
            self.note(&Entry::KillRequested {
                exec: exec.clone(),
                signal,
                all,
                at: asked.at,
            });
        }
        if signal == libc::SIGKILL {
            self.thaw_for_kill();
        }
        // What is answered later must not be done again by the next image.
        if let Some(request) = reply.request()
            && resume::is_on()
        {
            self.killing
                .retain(|request| resume::has(&request.call_key()));
            self.killing.push(request);
        }
        // Sent by the image before, which ended before it could say so. What SIGKILL has not
        // ended is waited for all the same.
        if again && signal != libc::SIGKILL {
            reply.send(Ok(()));
            return;
        }
        let request = reply.request();
        match (all && exec.is_none(), self.cgroup.clone()) {
            (true, Some(cgroup)) => {
                let (all, target) = (Arc::clone(&cgroup), Arc::clone(&process));
                let work = tokio::task::spawn_blocking(move || {
                    match all.signal_all(signal, Instant::now() + KILL_ALL_LIMIT) {
                        Err(error) if error.is_gone() => {
                            target.signal(signal).map_err(|error| kill_fault(&error))
                        }
                        other => {
                            other.map_err(|error| Fault::chain("unknown error after kill", &error))
                        }
                    }
                });
                tokio::spawn(async move {
                    let mut result = work
                        .await
                        .unwrap_or_else(|panic| Err(Fault::unknown(panic.to_string())));
                    if signal == libc::SIGKILL && result.is_ok() {
                        result = stuck::after_kill(&process, Some(cgroup)).await;
                    }
                    reply.send(result);
                });
            }
            (_, cgroup) => match process
                .signal(signal)
                .inspect(|()| resume::signalled(request))
            {
                Ok(()) if signal == libc::SIGKILL => {
                    // The others of the cgroup are waited for by an init, not by an exec.
                    let cgroup = cgroup.filter(|_| exec.is_none());
                    tokio::spawn(async move {
                        reply.send(stuck::after_kill(&process, cgroup).await);
                    });
                }
                sent => {
                    reply.send(sent.map_err(|error| kill_fault(&error)));
                }
            },
        }
    }

    /// The process that Kill means.
    pub(super) fn target(&self, exec: Option<&ExecId>) -> Result<P, Fault> {
        match exec {
            None => match self.model.init() {
                Init::Created(process)
                | Init::Starting(process, _)
                | Init::Running(process)
                | Init::Pausing(process)
                | Init::Paused(process)
                | Init::Resuming(process)
                | Init::Restoring(Some((process, None))) => Ok(Arc::clone(process)),
                Init::Creating(_) => Err(Fault::no_container()),
                // There is no process yet, and none to wait for: a delete is all it takes.
                Init::Stored | Init::Restoring(_) => Err(Fault::not_found("no such container")),
                Init::Ending(..) | Init::Stopped(..) => Err(Fault::finished()),
                Init::Deleting(_) | Init::Deleted => {
                    Err(Fault::not_found("cannot kill a deleted process"))
                }
            },
            Some(id) => match self.model.exec(id) {
                Some(Exec::Running(process)) => Ok(Arc::clone(process)),
                Some(Exec::Created | Exec::Starting | Exec::Registered(..)) => Err(Fault::new(
                    Code::FAILED_PRECONDITION,
                    "process not created: failed precondition",
                )),
                Some(Exec::Stopped(..)) => Err(Fault::finished()),
                Some(Exec::Deleting(_)) | None => {
                    Err(Fault::not_found(&format!("process does not exist {id}")))
                }
            },
        }
    }

    /// A frozen process cannot die; who asks for its death does not want it kept.
    pub(super) fn thaw_for_kill(&self) {
        if let (Init::Paused(_) | Init::Pausing(_), Some(cgroup)) =
            (self.model.init(), self.cgroup.clone())
        {
            let id = self.id.clone();
            tokio::task::spawn_blocking(move || {
                if let Err(error) = cgroup.thaw_all()
                    && !error.is_gone()
                {
                    log::warn!("{id}: thaw for SIGKILL: {}", chain(&error));
                }
            });
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

    pub(super) fn pause(&mut self, reply: Reply<()>) {
        self.freeze(reply, true);
    }

    pub(super) fn resume(&mut self, reply: Reply<()>) {
        self.freeze(reply, false);
    }

    pub(super) fn freeze(&mut self, reply: Reply<()>, freeze: bool) {
        let begun = if freeze {
            self.model.begin_pause()
        } else {
            self.model.begin_resume()
        };
        if let Err(refusal) = begun {
            reply.send(Err(refusal.into()));
            return;
        }
        self.underway = Some(if freeze {
            Underway::Pause(reply)
        } else {
            Underway::Resume(reply)
        });
        self.run_freeze(freeze);
    }

    /// Freezes or thaws; may be repeated.
    pub(super) fn run_freeze(&self, freeze: bool) {
        let cgroup = self.cgroup.clone();
        let work = tokio::task::spawn_blocking(move || {
            let cgroup =
                cgroup.ok_or_else(|| Fault::unknown("the container has no cgroup to freeze"))?;
            let deadline = Instant::now() + FREEZE_LIMIT;
            let result = if freeze {
                cgroup.freeze(deadline)
            } else {
                cgroup.thaw(deadline)
            };
            let what = if freeze { "pause" } else { "resume" };
            result.map_err(|error| Fault::chain(what, &error))
        });
        self.later(async move {
            let result = work
                .await
                .unwrap_or_else(|panic| Err(Fault::unknown(panic.to_string())));
            if freeze {
                Event::PauseDone(result)
            } else {
                Event::ResumeDone(result)
            }
        });
    }

    pub(super) fn checkpoint(&mut self, request: CheckpointRequest, reply: Reply<()>) {
        let may = self.model.may_checkpoint().map_err(Fault::from);
        if let Err(fault) = may {
            reply.send(Err(fault));
            return;
        }
        self.underway = Some(Underway::Update(reply));
        let (call, work) = checkpoint_call(&request, &self.options, &self.bundle);
        let call = call.kept("checkpoint");
        self.run_checkpoint(Ok((call, work)));
    }

    /// Runs the runtime's `checkpoint`, or goes on with it.
    pub(super) fn run_checkpoint(&self, call: Result<(Call, PathBuf), RestoredJob>) {
        let (runtime, reaper) = (self.runtime.clone(), Arc::clone(&self.shim.reaper));
        let bundle = self.bundle.clone();
        self.later(async move {
            let (result, work) = match call {
                Ok((call, work)) => (runtime.run(&reaper, call).await, Some(work)),
                Err(begun) => (runtime.run_on(begun).await, None),
            };
            Event::UpdateDone(result.map_err(|error| {
                let fault = error.fault("OCI runtime checkpoint failed");
                with_log(fault, work.as_deref(), &bundle)
            }))
        });
    }

    pub(super) fn update(&mut self, resources: Vec<u8>, reply: Reply<()>) {
        if let Err(refusal) = self.model.may_update() {
            reply.send(Err(refusal.into()));
            return;
        }
        if self.options.systemd_cgroup {
            self.update_by_runtime(resources, reply);
            return;
        }
        let resources: oci_spec::runtime::LinuxResources = match serde_json::from_slice(&resources)
        {
            Ok(resources) => resources,
            Err(error) => {
                reply.send(Err(Fault::invalid(format!("resources: {error}"))));
                return;
            }
        };
        self.underway = Some(Underway::Update(reply));
        let cgroup = self.cgroup.clone();
        let work = tokio::task::spawn_blocking(move || {
            let cgroup =
                cgroup.ok_or_else(|| Fault::unknown("the container has no cgroup to update"))?;
            cgroup
                .apply(&resources, When::Update)
                .map_err(|error| Fault::chain("update", &error))
        });
        self.later(async move {
            Event::UpdateDone(
                work.await
                    .unwrap_or_else(|panic| Err(Fault::unknown(panic.to_string()))),
            )
        });
    }

    /// With the systemd driver systemd has to be told, too: what only the cgroup knows is gone with
    /// the next `systemctl daemon-reload`. The runtime does both.
    fn update_by_runtime(&mut self, resources: Vec<u8>, reply: Reply<()>) {
        self.underway = Some(Underway::Update(reply));
        let (runtime, reaper) = (self.runtime.clone(), Arc::clone(&self.shim.reaper));
        let path = self.bundle.join("resources.json");
        self.later(async move {
            let file = path.clone();
            let written =
                tokio::task::spawn_blocking(move || std::fs::write(file, resources)).await;
            let result = match written {
                Ok(Ok(())) => {
                    let call = Call::new("update", UPDATE_LIMIT)
                        .arg("--resources")
                        .arg(path);
                    let ran = runtime.run(&reaper, call).await;
                    ran.map_err(|error| error.fault("OCI runtime update failed"))
                }
                Ok(Err(error)) => Err(Fault::unknown(format!("write {}: {error}", path.display()))),
                Err(panic) => Err(Fault::unknown(panic.to_string())),
            };
            Event::UpdateDone(result)
        });
    }

    pub(super) fn delete(&mut self, reply: Reply<Remains>) {
        match self.model.init() {
            // Never started: end it, and tell its true end before the delete.
            Init::Created(process) => {
                self.init.asked.push(Asked {
                    rpc: Rpc::Delete,
                    signal: Signal::KILL,
                    at: Timestamp::now(),
                });
                let _ = process.signal(libc::SIGKILL);
                self.defer_delete(reply);
            }
            Init::Ending(..) => self.defer_delete(reply),
            // A client that has killed it takes it for dead: say why it is not.
            Init::Running(process)
            | Init::Pausing(process)
            | Init::Paused(process)
            | Init::Resuming(process)
                if self
                    .init
                    .asked
                    .iter()
                    .any(|asked| asked.signal == Signal::KILL) =>
            {
                let (pid, cgroup) = (process.pid(), self.cgroup.clone());
                let refusal = self
                    .model
                    .begin_delete()
                    .map_or_else(Fault::from, |()| Fault::unknown("delete"));
                tokio::spawn(async move {
                    let stuck = stuck::refusal(&refusal.text, Some(pid), cgroup).await;
                    reply.send(Err(stuck.unwrap_or(refusal)));
                });
            }
            Init::Creating(_)
            | Init::Stored
            | Init::Restoring(_)
            | Init::Starting(..)
            | Init::Running(_)
            | Init::Pausing(_)
            | Init::Paused(_)
            | Init::Resuming(_)
            | Init::Stopped(..)
            | Init::Deleting(_)
            | Init::Deleted => self.delete_now(reply),
        }
    }

    pub(super) fn defer_delete(&mut self, reply: Reply<Remains>) {
        if self.deferred_delete.is_some() {
            reply.send(Err(Fault::new(
                Code::UNAVAILABLE,
                "delete is still on its way: try again",
            )));
            return;
        }
        self.deferred_delete = Some(reply);
        self.later(async {
            tokio::time::sleep(END_LIMIT).await;
            Event::DeleteOverdue
        });
    }

    pub(super) fn delete_now(&mut self, reply: Reply<Remains>) {
        if let Err(refusal) = self.model.begin_delete() {
            reply.send(Err(refusal.into()));
            return;
        }
        self.underway = Some(Underway::Delete(reply));
        self.run_delete(None);
    }

    /// Clears everything, or goes on with it.
    pub(super) fn run_delete(&self, begun: Option<RestoredJob>) {
        let work = remove::container(
            Arc::clone(&self.shim.reaper),
            self.runtime.clone(),
            Arc::clone(&self.init.io),
            (!self.mounts.is_empty()).then(|| self.bundle.join("rootfs")),
            self.cgroup.clone(),
            begun,
        );
        // Exec processes that outlived init are told before the delete is.
        let execs: Vec<(P, watch::Receiver<Option<Ended>>)> = self
            .model
            .execs()
            .iter()
            .filter_map(|(id, exec)| match exec {
                Exec::Running(process) => Some((
                    Arc::clone(process),
                    self.execs.get(id)?.side.exit.subscribe(),
                )),
                Exec::Created
                | Exec::Starting
                | Exec::Registered(..)
                | Exec::Stopped(..)
                | Exec::Deleting(_) => None,
            })
            .collect();
        self.later(async move {
            let result = work.await;
            if result.is_ok() {
                let ends = async {
                    for (process, mut exit) in execs {
                        let _ = process.signal(libc::SIGKILL);
                        let _ = exit.wait_for(Option::is_some).await;
                    }
                };
                let _ = tokio::time::timeout(LAUNCH_LIMIT, ends).await;
            }
            Event::DeleteDone(result)
        });
    }

    pub(super) fn delete_exec(&mut self, id: &ExecId, reply: Reply<Remains>) {
        match self.model.exec_begin_delete(id) {
            Err(refusal) => {
                reply.send(Err(refusal.into()));
            }
            Ok(_) => {
                let Some(exec) = self.execs.get_mut(id) else {
                    reply.send(Err(Fault::not_found(&format!(
                        "process does not exist {id}"
                    ))));
                    return;
                };
                exec.delete = Some(reply);
                self.clear_exec(id);
            }
        }
    }

    /// Clears an exec process; may be repeated.
    pub(super) fn clear_exec(&self, id: &ExecId) {
        let Some(exec) = self.execs.get(id) else {
            return;
        };
        let (io, id) = (Arc::clone(&exec.side.io), id.clone());
        self.later(async move {
            if let Err(held) = io.drain(remove::drain_limit()).await {
                log::warn!("delete of exec {id}: {held}");
            }
            Event::ExecCleared(id)
        });
    }
}

/// The refusal of a checkpoint, with the path of criu's log, which is kept in the bundle: clients
/// look for it after these words.
fn with_log(mut fault: Fault, work: Option<&Path>, bundle: &Path) -> Fault {
    let kept = bundle.join("criu-dump.log");
    if let Some(work) = work
        && let Err(error) = std::fs::copy(work.join("dump.log"), &kept)
    {
        log::debug!("checkpoint: keep the log of criu: {error}");
    }
    let first = fault.text.lines().next().unwrap_or_default();
    fault.text = format!("{first} path= {}", kept.display());
    fault
}

/// The call of `checkpoint`, with runc's flags, and where criu works and logs.
fn checkpoint_call(
    request: &CheckpointRequest,
    options: &Options,
    bundle: &Path,
) -> (Call, PathBuf) {
    let CheckpointRequest {
        path,
        options: wanted,
    } = request;
    let image = [path, &wanted.image_path, &options.criu_image_path]
        .into_iter()
        .find(|path| !path.is_empty())
        .map_or_else(|| bundle.join("checkpoint"), PathBuf::from);
    let work = [&wanted.work_path, &options.criu_work_path]
        .into_iter()
        .find(|path| !path.is_empty())
        .map_or_else(|| bundle.join("work"), PathBuf::from);
    let mut call = Call::new("checkpoint", checkpoint_limit())
        .arg("--image-path")
        .arg(image)
        .arg("--work-path")
        .arg(&work);
    for (wanted, flag) in [
        (!wanted.exit, "--leave-running"),
        (wanted.open_tcp, "--tcp-established"),
        (wanted.external_unix_sockets, "--ext-unix-sk"),
        (wanted.terminal, "--shell-job"),
        (wanted.file_locks, "--file-locks"),
    ] {
        if wanted {
            call = call.arg(flag);
        }
    }
    if !wanted.cgroups_mode.is_empty() {
        call = call.arg("--manage-cgroups-mode").arg(&wanted.cgroups_mode);
    }
    for namespace in &wanted.empty_namespaces {
        call = call.arg("--empty-ns").arg(namespace);
    }
    (call, work)
}

fn kill_fault(error: &std::io::Error) -> Fault {
    if error.raw_os_error() == Some(libc::ESRCH) {
        Fault::finished()
    } else {
        Fault::unknown(format!("unknown error after kill: {error}"))
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
