//! What changes a container that goes on, and its end: pause, resume, update, checkpoint, delete.

use super::*;

impl<P: Clone> Container<P> {
    /// Pause begins.
    ///
    /// # Errors
    /// [`Refusal`] by table b.1.
    pub(crate) fn begin_pause(&mut self) -> Result<(), Refusal> {
        match &self.init {
            Init::Running(process) => {
                self.init = Init::Pausing(process.clone());
                Ok(())
            }
            Init::Creating(_)
            | Init::Created(_)
            | Init::Stored
            | Init::Restoring(_)
            | Init::Starting(..) => Err(Refusal::State("cannot pause task in created state")),
            Init::Pausing(_) | Init::Paused(_) | Init::Resuming(_) => {
                Err(Refusal::State("cannot pause a paused container"))
            }
            Init::Ending(..) | Init::Stopped(..) => {
                Err(Refusal::State("cannot pause a stopped container"))
            }
            Init::Deleting(_) | Init::Deleted => {
                Err(Refusal::State("cannot pause a deleted process"))
            }
        }
    }

    /// Pause ended.
    ///
    /// # Errors
    /// When init ended meanwhile.
    pub(crate) fn pause_done(&mut self, success: bool) -> Result<(), Refusal> {
        match &self.init {
            Init::Pausing(process) => {
                let process = process.clone();
                if success {
                    self.told.push(Told::Paused);
                    self.init = Init::Paused(process);
                } else {
                    self.init = Init::Running(process);
                }
                Ok(())
            }
            _ => Err(Refusal::State("cannot pause a stopped container")),
        }
    }

    /// Resume begins.
    ///
    /// # Errors
    /// [`Refusal`] by table b.1.
    pub(crate) fn begin_resume(&mut self) -> Result<(), Refusal> {
        match &self.init {
            Init::Paused(process) => {
                self.init = Init::Resuming(process.clone());
                Ok(())
            }
            Init::Creating(_) | Init::Created(_) | Init::Stored | Init::Restoring(_) => {
                Err(Refusal::State("cannot resume task in created state"))
            }
            Init::Starting(..) | Init::Running(_) | Init::Pausing(_) | Init::Resuming(_) => {
                Err(Refusal::State("cannot resume a running process"))
            }
            Init::Ending(..) | Init::Stopped(..) => {
                Err(Refusal::State("cannot resume a stopped container"))
            }
            Init::Deleting(_) | Init::Deleted => {
                Err(Refusal::State("cannot resume a deleted process"))
            }
        }
    }

    /// Resume ended.
    ///
    /// # Errors
    /// When init ended meanwhile.
    pub(crate) fn resume_done(&mut self, success: bool) -> Result<(), Refusal> {
        match &self.init {
            Init::Resuming(process) => {
                let process = process.clone();
                if success {
                    self.told.push(Told::Resumed);
                    self.init = Init::Running(process);
                } else {
                    self.init = Init::Paused(process);
                }
                Ok(())
            }
            _ => Err(Refusal::State("cannot resume a stopped container")),
        }
    }

    /// Whether the resources can be changed.
    ///
    /// # Errors
    /// [`Refusal`] by table b.1.
    pub(crate) fn may_update(&self) -> Result<(), Refusal> {
        match &self.init {
            Init::Created(_)
            | Init::Starting(..)
            | Init::Running(_)
            | Init::Pausing(_)
            | Init::Paused(_)
            | Init::Resuming(_) => Ok(()),
            Init::Creating(_) => Err(Refusal::Busy("create")),
            Init::Stored | Init::Restoring(_) => Err(Refusal::State(
                "cannot update a container that is to be restored by its start",
            )),
            Init::Ending(..) | Init::Stopped(..) => {
                Err(Refusal::State("cannot update a stopped container"))
            }
            Init::Deleting(_) | Init::Deleted => {
                Err(Refusal::State("cannot update a deleted process"))
            }
        }
    }

    /// Whether a checkpoint can be taken.
    ///
    /// # Errors
    /// [`Refusal`] by table b.1.
    pub(crate) fn may_checkpoint(&self) -> Result<(), Refusal> {
        match &self.init {
            Init::Running(_) | Init::Pausing(_) | Init::Paused(_) | Init::Resuming(_) => Ok(()),
            Init::Creating(_)
            | Init::Created(_)
            | Init::Stored
            | Init::Restoring(_)
            | Init::Starting(..) => {
                Err(Refusal::State("cannot checkpoint a task in created state"))
            }
            Init::Ending(..) | Init::Stopped(..) => {
                Err(Refusal::State("cannot checkpoint a stopped container"))
            }
            Init::Deleting(_) | Init::Deleted => {
                Err(Refusal::State("cannot checkpoint a deleted process"))
            }
        }
    }

    /// Delete begins. A container that was never started has to be killed and reaped first.
    ///
    /// # Errors
    /// [`Refusal`] by table b.1.
    pub(crate) fn begin_delete(&mut self) -> Result<(), Refusal> {
        match &self.init {
            Init::Stopped(process, ended) => {
                self.init = Init::Deleting(Some((process.clone(), *ended)));
                Ok(())
            }
            Init::Stored => {
                self.init = Init::Deleting(None);
                Ok(())
            }
            Init::Creating(_) => Err(Refusal::Busy("create")),
            Init::Created(_) => Err(Refusal::Busy("the end of the created process")),
            Init::Ending(..) => Err(Refusal::Busy("the end of the exec processes")),
            Init::Starting(..) | Init::Restoring(_) | Init::Running(_) => {
                Err(Refusal::State("cannot delete a running process"))
            }
            Init::Pausing(_) | Init::Paused(_) | Init::Resuming(_) => {
                Err(Refusal::State("cannot delete a paused process"))
            }
            Init::Deleting(_) => Err(Refusal::Busy("delete")),
            Init::Deleted => Err(Refusal::NotFound(
                "cannot delete a deleted process".to_owned(),
            )),
        }
    }

    /// Delete ended; after a failure it can be tried again. `unseen` is told of exec processes
    /// that were told to run and whose end nobody has seen: nothing is told after a delete.
    pub(crate) fn delete_done(&mut self, success: bool, unseen: Ended) {
        if let Init::Deleting(remains) = &self.init {
            let remains = remains.clone();
            if success {
                for (id, exec) in &mut self.execs {
                    if let Exec::Running(process) = exec {
                        let process = process.clone();
                        self.told
                            .push(Told::ExecExited(id.clone(), process.clone(), unseen));
                        *exec = Exec::Stopped(process, unseen);
                    }
                }
                self.told.push(Told::Deleted(remains));
                self.init = Init::Deleted;
                self.execs.clear();
            } else {
                self.init = match remains {
                    Some((process, ended)) => Init::Stopped(process, ended),
                    None => Init::Stored,
                };
            }
        }
    }
}
