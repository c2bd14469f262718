//! A caller that goes away, or gives up, in the middle of a change: the change is done as a whole
//! or not at all, and the container can be used or is gone.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::{Request, Response};
use holdfast_integration::deadline::eventually;
use holdfast_integration::fault::Fault;
use holdfast_integration::lone::{Faulty, Lone};
use holdfast_integration::runtime::{Kind, Runtime};
use holdfast_integration::shim::{V2, runc_options};

const LIMIT: Duration = Duration::from_secs(30);
/// How long the callers stay, in milliseconds: from before the runtime is started to after all is
/// done, with a runtime that takes 100 ms longer than usual.
const PATIENCES: [u64; 10] = [0, 2, 5, 10, 20, 50, 90, 120, 150, 250];

/// Sends a request on a connection of its own; the deadline is the one the caller tells.
fn send(lone: &Lone, method: &str, payload: Vec<u8>, deadline: Duration) -> UnixStream {
    let mut request = Request::new();
    request.service = V2.to_owned();
    request.method = method.to_owned();
    request.payload = payload;
    request.timeout_nano = deadline.as_nanos().try_into().unwrap();
    let body = request.write_to_bytes().unwrap();
    let mut frame = Vec::new();
    frame.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(&1u32.to_be_bytes());
    // A request, without flags.
    frame.extend_from_slice(&[1, 0]);
    frame.extend_from_slice(&body);
    let path = lone.address.strip_prefix("unix://").unwrap();
    let mut socket = UnixStream::connect(path).unwrap();
    socket.write_all(&frame).unwrap();
    socket
}

/// Makes a call whose caller hangs up after a while.
fn hang_up(lone: &Lone, method: &str, payload: Vec<u8>, after: u64) {
    let socket = send(lone, method, payload, Duration::from_secs(60));
    // The caller's patience is what is tested here: no event to wait for.
    std::thread::sleep(Duration::from_millis(after));
    drop(socket);
}

/// Makes a call that may take only so long; the code it is answered with.
fn give_up(lone: &Lone, method: &str, payload: Vec<u8>, after: u64) -> i32 {
    let deadline = Duration::from_millis(after.max(1));
    let mut socket = send(lone, method, payload, deadline);
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut header = [0; 10];
    socket.read_exact(&mut header).unwrap();
    let length = u32::from_be_bytes(header[..4].try_into().unwrap());
    let mut body = vec![0; length as usize];
    socket.read_exact(&mut body).unwrap();
    let response = Response::parse_from_bytes(&body).unwrap();
    response.status.code.value()
}

struct Pod {
    lone: Lone,
    options: containerd_shim_protos::protobuf::well_known_types::any::Any,
}

impl Pod {
    fn new(test: &str) -> Option<Self> {
        let lone = Lone::start(test, &[], None)?;
        let runtime = Runtime::find(Kind::Holdfast).unwrap();
        let faulty = Faulty::new(&lone.path(""), &runtime);
        for verb in ["create", "start", "exec", "delete"] {
            faulty.order(verb, &Fault::Delay(Duration::from_millis(100)));
        }
        let options = runc_options(&faulty.program, &lone.path("state"));
        Some(Self { lone, options })
    }

    /// After a create that nobody waited for: the container, whole.
    fn await_created(&self) -> u32 {
        let state = eventually("the container is there", LIMIT, || {
            self.lone.shim.state("box", "").ok()
        });
        assert_eq!(state.status.value(), 1, "{state:?}");
        assert_ne!(state.pid, 0);
        state.pid
    }

    /// That it can be used, and ended.
    fn use_up(&self) {
        let shim = &self.lone.shim;
        shim.exec("box", "use", &["sh", "-c", "exit 3"]).unwrap();
        shim.start("box", "use").unwrap();
        assert_eq!(shim.wait("box", "use").unwrap(), 3);
        shim.delete("box", "use").unwrap();
        self.lone.end("box");
        self.lone.assert_nothing_left("its delete");
    }
}

fn start_request(exec: &str) -> api::StartRequest {
    let mut request = api::StartRequest::new();
    request.id = "box".to_owned();
    request.exec_id = exec.to_owned();
    request
}

fn delete_request(exec: &str) -> api::DeleteRequest {
    let mut request = api::DeleteRequest::new();
    request.id = "box".to_owned();
    request.exec_id = exec.to_owned();
    request
}

fn await_status(pod: &Pod, exec: &str, status: i32) {
    eventually("what was begun is done", LIMIT, || {
        let state = pod.lone.shim.state("box", exec).unwrap();
        (state.status.value() == status).then_some(())
    });
}

fn await_gone(pod: &Pod, exec: &str) {
    eventually("it is gone", LIMIT, || {
        let refused = pod.lone.shim.state("box", exec).err()?;
        assert_eq!(refused.code, 5, "{refused:?}");
        Some(())
    });
}

/// Every change of a container's life, each begun by a caller that does not stay, and asked for
/// again by one that does: it was not begun at all, or is done, or is on its way.
fn a_life(pod: &Pod, leave: &dyn Fn(&str, Vec<u8>)) {
    let shim = &pod.lone.shim;
    let call = |method: &str, payload: Vec<u8>| {
        leave(method, payload.clone());
        if let Err(refused) = shim.call_raw(method, payload) {
            // Already exists, not found, on its way, or in a state where it cannot be done twice.
            assert!(
                [2, 5, 6, 14].contains(&refused.code),
                "{method}: {refused:?}"
            );
        }
    };
    let create = pod.lone.create_request("box", Some(&pod.options));
    call("Create", create.write_to_bytes().unwrap());
    let pid = pod.await_created();
    call("Start", start_request("").write_to_bytes().unwrap());
    await_status(pod, "", 2);
    assert_eq!(shim.state("box", "").unwrap().pid, pid);
    shim.exec("box", "exec", &["sleep", "600"]).unwrap();
    call("Start", start_request("exec").write_to_bytes().unwrap());
    await_status(pod, "exec", 2);
    shim.kill("box", "exec", 9).unwrap();
    assert_eq!(shim.wait("box", "exec").unwrap(), 137);
    call("Delete", delete_request("exec").write_to_bytes().unwrap());
    await_gone(pod, "exec");
    shim.kill("box", "", 9).unwrap();
    assert_eq!(shim.wait("box", "").unwrap(), 137);
    call("Delete", delete_request("").write_to_bytes().unwrap());
    await_gone(pod, "");
    pod.lone.assert_nothing_left("a life without callers");
}

#[test]
fn a_caller_that_hangs_up_changes_nothing() {
    let Some(pod) = Pod::new("a_caller_that_hangs_up") else {
        return;
    };
    for after in PATIENCES {
        a_life(&pod, &|method, payload| {
            hang_up(&pod.lone, method, payload, after);
        });
    }
    pod.lone.finish();
}

#[test]
fn a_caller_that_gives_up_is_told_so_and_changes_nothing() {
    let Some(pod) = Pod::new("a_caller_that_gives_up") else {
        return;
    };
    let codes = std::cell::RefCell::new(Vec::new());
    for after in PATIENCES {
        a_life(&pod, &|method, payload| {
            codes
                .borrow_mut()
                .push(give_up(&pod.lone, method, payload, after));
        });
    }
    // Deadline exceeded, or the answer; both were seen.
    let codes = codes.into_inner();
    assert!(codes.iter().all(|code| [0, 4].contains(code)), "{codes:?}");
    assert!(codes.contains(&4), "{codes:?}");
    // The container is as good as any.
    pod.lone.create("box", Some(&pod.options)).unwrap();
    pod.lone.shim.start("box", "").unwrap();
    pod.use_up();
    pod.lone.finish();
}
