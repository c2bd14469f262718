//! Delete, of the container and of an exec process.

use super::*;

impl Owner {
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
