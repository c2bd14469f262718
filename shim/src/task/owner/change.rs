//! What changes a container that goes on: freezing, limits, checkpoints.

use super::*;

impl Owner {
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
