//! A Kubernetes pod as kubelet makes it: containerd's CRI plugin with our runtime handler.

#[path = "cri/client.rs"]
mod client;

use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

use client::*;
use holdfast_integration::containerd::{Containerd, Extra, Version};
use holdfast_integration::deadline::eventually;
use holdfast_integration::scratch::text;
use holdfast_integration::{image, leaks};

const LIMIT: Duration = Duration::from_secs(60);
/// The image of the pod's own container: it only has to stay.
const PAUSE: &str = "localhost/holdfast-test/pause:1";
/// Where the CRI plugin keeps everything.
const NAMESPACE: &str = "k8s.io";
const RUNNING: i32 = 1;
const EXITED: i32 = 2;

#[test]
fn a_pod_of_containerd_1_6() {
    a_pod(
        Version::V1_6,
        &format!(
            "version = 2\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\n\
             sandbox_image = \"{PAUSE}\"\n\
             restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n\
             runtime_type = \"io.containerd.runc.v2\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.holdfast]\n\
             runtime_type = \"io.containerd.holdfast.v2\"\n"
        ),
    );
}

#[test]
fn a_pod_of_containerd_2_1() {
    a_pod(
        Version::V2_1,
        &format!(
            "version = 3\n\
             [plugins.\"io.containerd.cri.v1.images\".pinned_images]\n\
             sandbox = \"{PAUSE}\"\n\
             [plugins.\"io.containerd.cri.v1.runtime\"]\n\
             restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.holdfast]\n\
             runtime_type = \"io.containerd.holdfast.v2\"\n"
        ),
    );
}

/// A pod, and how it was asked for.
struct Pod<'a> {
    containerd: &'a Containerd,
    cri: Cri,
    config: SandboxConfig,
    id: String,
    /// Of all its containers, its own included.
    ids: RefCell<Vec<String>>,
}

fn a_pod(version: Version, config: &str) {
    // The plugin's configuration has to be there before the daemon is.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cri.toml");
    std::fs::write(&file, config).unwrap();
    let extra = Extra {
        imports: vec![file],
        cri: true,
        ..Extra::default()
    };
    let Some(containerd) = Containerd::start(version, "a_pod", &extra) else {
        return;
    };
    import_images(&containerd);
    let pod = Pod::run(&containerd);
    let main = pod.start("main", &["sleep", "600"], 64 << 20);
    an_exec_gives_its_output_and_code(&pod, &main);
    the_statistics_have_numbers(&pod, &main);
    its_limits_can_be_changed(&pod, &main);
    an_exit_has_its_code(&pod);
    out_of_memory_is_the_reason(&pod);
    a_restart_of_containerd_loses_nothing(&pod, &main);
    pod.stop(&main);
    pod.remove();
    // The pod's cgroup is kubelet's, and so is its end.
    assert_eq!(leaks::cgroup_members(&containerd.namespace), [0; 0]);
    leaks::remove_cgroups(&containerd.namespace);
    for id in pod.ids.borrow().iter() {
        let state = Path::new("/run/holdfast").join(NAMESPACE).join(id);
        assert!(!state.exists(), "{} is left", state.display());
        let bundle = containerd.path("state/io.containerd.runtime.v2.task");
        let bundle = bundle.join(NAMESPACE).join(id);
        assert!(!bundle.exists(), "{} is left", bundle.display());
    }
    containerd.assert_nothing_left();
}

fn import_images(containerd: &Containerd) {
    for (name, command) in [(PAUSE, ["sleep", "6000"]), (image::NAME, ["sleep", "1"])] {
        let folder = containerd.path(&holdfast_integration::place::unique("image"));
        std::fs::create_dir(&folder).unwrap();
        let archive = text(&image::write_archive_of(&folder, name, &command));
        let mut ctr = containerd.program("ctr");
        ctr.arg("--address").arg(containerd.address());
        ctr.args(["--namespace", NAMESPACE, "images", "import", &archive]);
        holdfast_integration::deadline::run(&mut ctr, LIMIT).ok();
    }
}

fn words(args: &[&str]) -> Vec<String> {
    args.iter().map(|word| (*word).to_owned()).collect()
}

impl<'a> Pod<'a> {
    fn run(containerd: &'a Containerd) -> Self {
        let cri = Cri::of(containerd);
        // On the node's network: nothing of CNI is needed.
        let namespaces = NamespaceOption {
            network: 2,
            pid: 1,
            ipc: 0,
        };
        let logs = containerd.path("logs");
        std::fs::create_dir(&logs).unwrap();
        let config = SandboxConfig {
            metadata: Some(SandboxMetadata {
                name: "pod".to_owned(),
                uid: containerd.namespace.clone(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: String::new(),
            log_directory: text(&logs),
            labels: [("app".to_owned(), "test".to_owned())].into(),
            linux: Some(LinuxSandbox {
                cgroup_parent: format!("/{}/pod", containerd.namespace),
                security: Some(SandboxSecurity {
                    namespaces: Some(namespaces),
                }),
            }),
        };
        // The images have been imported behind the plugin's back; it hears of them soon.
        let id = eventually("the pod runs", LIMIT, || {
            let request = RunPodSandbox {
                config: Some(config.clone()),
                handler: "holdfast".to_owned(),
            };
            match cri.call::<_, Id>("RunPodSandbox", request) {
                Ok(sandbox) => Some(sandbox.id),
                Err(status) if status.message().contains("sandbox image") => None,
                Err(status) => panic!("RunPodSandbox: {status}"),
            }
        });
        let status: SandboxStatus = cri.ok("PodSandboxStatus", Id { id: id.clone() });
        assert_eq!(status.status.unwrap().state, 0, "not ready");
        Self {
            containerd,
            cri,
            config,
            ids: vec![id.clone()].into(),
            id,
        }
    }

    fn start(&self, name: &str, args: &[&str], memory: i64) -> String {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(Image {
                image: image::NAME.to_owned(),
            }),
            command: words(args),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainer {
                resources: Some(Resources {
                    cpu_shares: 256,
                    memory_limit: memory,
                }),
                security: Some(ContainerSecurity {
                    namespaces: self
                        .config
                        .linux
                        .as_ref()
                        .and_then(|linux| linux.security.as_ref()?.namespaces.clone()),
                }),
            }),
        };
        let request = CreateContainer {
            sandbox: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let made: Id = self.cri.ok("CreateContainer", request);
        let _: Empty = self.cri.ok(
            "StartContainer",
            Id {
                id: made.id.clone(),
            },
        );
        made.id
    }

    fn status(&self, id: &str) -> ContainerState {
        let id = Id { id: id.to_owned() };
        let answer: ContainerStatus = self.cri.ok("ContainerStatus", id);
        answer.status.unwrap()
    }

    fn exited(&self, id: &str) -> ContainerState {
        eventually("the exit is known", LIMIT, || {
            let status = self.status(id);
            (status.state == EXITED).then_some(status)
        })
    }

    fn exec(&self, id: &str, args: &[&str]) -> ExecSyncAnswer {
        let request = ExecSync {
            container: id.to_owned(),
            command: words(args),
            timeout: 30,
        };
        self.cri.ok("ExecSync", request)
    }

    fn stop(&self, id: &str) {
        let request = StopContainer {
            container: id.to_owned(),
            timeout: 1,
        };
        let _: Empty = self.cri.ok("StopContainer", request);
        let status = self.status(id);
        assert_eq!(status.state, EXITED, "{status:?}");
        // As PID 1 it does not hear SIGTERM.
        assert_eq!(status.exit_code, 137, "{status:?}");
        self.remove_container(id);
    }

    fn remove_container(&self, id: &str) {
        let _: Empty = self.cri.ok("RemoveContainer", Id { id: id.to_owned() });
    }

    fn remove(&self) {
        let id = || Id {
            id: self.id.clone(),
        };
        let _: Empty = self.cri.ok("StopPodSandbox", id());
        let status: SandboxStatus = self.cri.ok("PodSandboxStatus", id());
        assert_eq!(status.status.unwrap().state, 1, "still ready");
        let _: Empty = self.cri.ok("RemovePodSandbox", id());
    }
}

fn an_exec_gives_its_output_and_code(pod: &Pod, id: &str) {
    let answer = pod.exec(id, &["sh", "-c", "echo out; echo err >&2; exit 4"]);
    assert_eq!(answer.exit_code, 4);
    assert_eq!(
        (answer.stdout, answer.stderr),
        (b"out\n".into(), b"err\n".into())
    );
    for _ in 0..10 {
        assert_eq!(pod.exec(id, &["true"]).exit_code, 0);
    }
}

fn the_statistics_have_numbers(pod: &Pod, id: &str) {
    let check = |stats: &Stats| {
        let (cpu, memory) = (stats.cpu.as_ref().unwrap(), stats.memory.as_ref().unwrap());
        assert!(cpu.usage.as_ref().unwrap().value > 0, "{stats:?}");
        assert!(memory.working_set.as_ref().unwrap().value > 0, "{stats:?}");
    };
    let answer: ContainerStats = pod.cri.ok("ContainerStats", Id { id: id.to_owned() });
    check(&answer.stats.unwrap());
    // Of whole pods 1.6 has none.
    match pod
        .cri
        .call::<_, SandboxStatsList>("ListPodSandboxStats", Empty {})
    {
        Ok(list) => {
            let own = list
                .stats
                .iter()
                .find(|one| one.attributes.as_ref().is_some_and(|of| of.id == pod.id));
            let own = own.unwrap().linux.as_ref().unwrap();
            let memory = own.memory.as_ref().unwrap();
            assert!(memory.usage.as_ref().unwrap().value > 0, "{own:?}");
            assert!(
                own.processes
                    .as_ref()
                    .unwrap()
                    .count
                    .as_ref()
                    .unwrap()
                    .value
                    > 0
            );
            assert_eq!(own.containers.len(), 1, "{own:?}");
            own.containers.iter().for_each(check);
        }
        Err(status) => {
            assert_eq!(pod.containerd.version, Version::V1_6, "{status}");
            assert!(status.message().contains("not implemented"), "{status}");
        }
    }
}

fn its_limits_can_be_changed(pod: &Pod, id: &str) {
    let request = UpdateContainer {
        container: id.to_owned(),
        linux: Some(Resources {
            cpu_shares: 512,
            memory_limit: 96 << 20,
        }),
    };
    let _: Empty = pod.cri.ok("UpdateContainerResources", request);
    let below = format!("{}/pod/{id}", pod.containerd.namespace);
    let read = |names: [&str; 2]| {
        leaks::hierarchies().iter().find_map(|hierarchy| {
            let cgroup = hierarchy.join(&below);
            names
                .iter()
                .find_map(|name| std::fs::read_to_string(cgroup.join(name)).ok())
        })
    };
    let limit = read(["memory.limit_in_bytes", "memory.max"]).unwrap();
    assert_eq!(limit.trim(), (96 << 20).to_string());
}

fn an_exit_has_its_code(pod: &Pod) {
    let id = pod.start("fails", &["sh", "-c", "exit 7"], 0);
    let status = pod.exited(&id);
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    assert!(status.finished_at > 0, "{status:?}");
    pod.remove_container(&id);
    let id = pod.start("works", &["sh", "-c", "echo said"], 0);
    let status = pod.exited(&id);
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    let log = std::fs::read_to_string(pod.containerd.path("logs/works.log")).unwrap();
    assert!(log.contains("stdout F said"), "{log}");
    pod.remove_container(&id);
}

fn out_of_memory_is_the_reason(pod: &Pod) {
    // One line without end, which is kept until it ends.
    let id = pod.start("greedy", &["tail", "/dev/zero"], 16 << 20);
    let status = pod.exited(&id);
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled"),
        "{status:?}"
    );
    pod.remove_container(&id);
}

fn a_restart_of_containerd_loses_nothing(pod: &Pod, main: &str) {
    let script = "until [ -e /go ]; do sleep 0.05; done; exit 9";
    let ends = pod.start("ends", &["sh", "-c", script], 0);
    let below = format!("{}/pod/{ends}", pod.containerd.namespace);
    let init = *leaks::cgroup_members(&below).first().unwrap();
    pod.containerd.kill_daemon();
    std::fs::write(format!("/proc/{init}/root/go"), "").unwrap();
    eventually("it ends while nobody looks", LIMIT, || {
        leaks::cgroup_members(&below).is_empty().then_some(())
    });
    pod.containerd.start_daemon();
    // The plugin recovers its containers after the socket is there.
    eventually("the plugin is back", LIMIT, || {
        let id = Id {
            id: main.to_owned(),
        };
        pod.cri
            .call::<_, ContainerStatus>("ContainerStatus", id)
            .ok()
            .map(drop)
    });
    let status = pod.exited(&ends);
    assert_eq!((status.exit_code, status.reason.as_str()), (9, "Error"));
    pod.remove_container(&ends);
    assert_eq!(pod.status(main).state, RUNNING);
    assert_eq!(pod.exec(main, &["sh", "-c", "exit 6"]).exit_code, 6);
}
