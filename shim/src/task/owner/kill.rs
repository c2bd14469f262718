//! Signals: to a process or to all of the container, and what SIGKILL needs to arrive.

use super::*;

impl Owner {
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
}

fn kill_fault(error: &std::io::Error) -> Fault {
    if error.raw_os_error() == Some(libc::ESRCH) {
        Fault::finished()
    } else {
        Fault::unknown(format!("unknown error after kill: {error}"))
    }
}
