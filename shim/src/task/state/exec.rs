//! Exec processes.

use super::*;

impl<P: Clone> Container<P> {
    /// Exec: makes an exec process known.
    ///
    /// # Errors
    /// [`Refusal`] by table b.1; a taken id.
    pub(crate) fn exec_add(&mut self, id: ExecId) -> Result<(), Refusal> {
        match &self.init {
            Init::Created(_) | Init::Starting(..) | Init::Running(_) => {}
            Init::Creating(_) => return Err(Refusal::Busy("create")),
            Init::Stored | Init::Restoring(_) => {
                return Err(Refusal::State("cannot exec in a created state"));
            }
            Init::Pausing(_) | Init::Paused(_) | Init::Resuming(_) => {
                return Err(Refusal::State("cannot exec in a paused state"));
            }
            Init::Ending(..) | Init::Stopped(..) => {
                return Err(Refusal::State("cannot exec in a stopped state"));
            }
            Init::Deleting(_) | Init::Deleted => {
                return Err(Refusal::State("cannot exec in a deleted state"));
            }
        }
        if self.execs.contains_key(&id) {
            return Err(Refusal::Exists(id.to_string()));
        }
        self.execs.insert(id.clone(), Exec::Created);
        self.told.push(Told::ExecAdded(id));
        Ok(())
    }

    /// Start of an exec process begins.
    ///
    /// # Errors
    /// [`Refusal`] by table b.2; init has ended.
    pub(crate) fn exec_begin_start(&mut self, id: &ExecId) -> Result<(), Refusal> {
        let exec = self.execs.get_mut(id).ok_or_else(|| no_exec(id))?;
        match exec {
            Exec::Created => {}
            Exec::Starting | Exec::Registered(..) | Exec::Running(_) => {
                return Err(Refusal::State("cannot start a running process"));
            }
            Exec::Stopped(..) => return Err(Refusal::State("cannot start a stopped process")),
            Exec::Deleting(_) => return Err(Refusal::State("cannot start a deleted process")),
        }
        if matches!(
            self.init,
            Init::Ending(..) | Init::Stopped(..) | Init::Deleting(_) | Init::Deleted
        ) {
            return Err(Refusal::Precondition(format!(
                "container {} init process is not running",
                self.id
            )));
        }
        *exec = Exec::Starting;
        Ok(())
    }

    /// The runtime made the exec process; it is held until this has been recorded.
    pub(crate) fn exec_registered(&mut self, id: &ExecId, process: P) {
        if let Some(exec @ Exec::Starting) = self.execs.get_mut(id) {
            *exec = Exec::Registered(process, None);
        }
    }

    /// The runtime's `exec` answered.
    ///
    /// # Errors
    /// Success without a registered process: the runtime is at fault.
    pub(crate) fn exec_start_done(&mut self, id: &ExecId, success: bool) -> Result<P, Refusal> {
        let exec = self.execs.get_mut(id).ok_or_else(|| no_exec(id))?;
        let result = match (&*exec, success) {
            (Exec::Registered(process, ended), true) => {
                let (process, ended) = (process.clone(), *ended);
                self.told
                    .push(Told::ExecStarted(id.clone(), process.clone()));
                *exec = match ended {
                    Some(ended) => {
                        self.told
                            .push(Told::ExecExited(id.clone(), process.clone(), ended));
                        Exec::Stopped(process.clone(), ended)
                    }
                    None => Exec::Running(process.clone()),
                };
                Ok(process)
            }
            // What never ran needs no exit: nobody was told of it.
            (Exec::Registered(..) | Exec::Starting, _) => {
                *exec = Exec::Created;
                Err(Refusal::State("the runtime made no process"))
            }
            (Exec::Created | Exec::Running(_) | Exec::Stopped(..) | Exec::Deleting(_), _) => {
                Err(Refusal::State("the exec process was not being started"))
            }
        };
        if self.is_holding_exit() {
            self.tell_exit_if_last();
        }
        result
    }

    /// An exec process was reaped.
    pub(crate) fn exec_ended(&mut self, id: &ExecId, ended: Ended) {
        let Some(exec) = self.execs.get_mut(id) else {
            return;
        };
        match exec {
            Exec::Registered(_, slot) => *slot = Some(ended),
            Exec::Running(process) => {
                let process = process.clone();
                self.told
                    .push(Told::ExecExited(id.clone(), process.clone(), ended));
                *exec = Exec::Stopped(process, ended);
                if self.is_holding_exit() {
                    self.tell_exit_if_last();
                }
            }
            // The end of a process whose start failed: told to nobody.
            Exec::Created | Exec::Starting | Exec::Stopped(..) | Exec::Deleting(_) => {}
        }
    }

    /// Delete of an exec process begins.
    ///
    /// # Errors
    /// [`Refusal`] by table b.2.
    pub(crate) fn exec_begin_delete(&mut self, id: &ExecId) -> Result<Option<(P, Ended)>, Refusal> {
        let exec = self.execs.get_mut(id).ok_or_else(|| no_exec(id))?;
        let answer = match exec {
            Exec::Created => None,
            Exec::Stopped(process, ended) => Some((process.clone(), *ended)),
            Exec::Starting | Exec::Registered(..) | Exec::Running(_) => {
                return Err(Refusal::State("cannot delete a running process"));
            }
            Exec::Deleting(_) => return Err(no_exec(id)),
        };
        *exec = Exec::Deleting(answer.clone());
        Ok(answer)
    }

    /// An exec process' remains are cleared.
    pub(crate) fn exec_deleted(&mut self, id: &ExecId) {
        if matches!(self.execs.get(id), Some(Exec::Deleting(_))) {
            self.execs.remove(id);
        }
    }
}
