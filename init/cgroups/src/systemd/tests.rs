//! A bus of our own, in a thread: it answers in big endian, as nobody here would, so that nothing is right by accident.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::properties::{Property, Value};
use super::scope::version;
use super::wire::{Call, Encoder, FIXED, Message, length};
use super::{Error, Instance, Systemd, Unit};

const JOB: &str = "/org/freedesktop/systemd1/job/7";
const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_call_is_as_specified() {
    let call = Call {
        destination: Some("org.freedesktop.DBus"),
        path: "/org/freedesktop/DBus",
        interface: "org.freedesktop.DBus",
        member: "Hello",
        signature: "",
        body: Encoder::default(),
    };
    let mut expected = Vec::new();
    // Little endian, METHOD_CALL, no flags, version 1; no body; serial 1; 109 bytes of fields.
    expected.extend_from_slice(b"l\x01\x00\x01\x00\x00\x00\x00\x01\x00\x00\x00\x6d\x00\x00\x00");
    expected.extend_from_slice(b"\x01\x01o\x00\x15\x00\x00\x00/org/freedesktop/DBus\x00\x00\x00");
    expected
        .extend_from_slice(b"\x02\x01s\x00\x14\x00\x00\x00org.freedesktop.DBus\x00\x00\x00\x00");
    expected.extend_from_slice(b"\x03\x01s\x00\x05\x00\x00\x00Hello\x00\x00\x00");
    expected
        .extend_from_slice(b"\x06\x01s\x00\x14\x00\x00\x00org.freedesktop.DBus\x00\x00\x00\x00");
    assert_eq!(call.encode(1), expected);
    assert_eq!(
        length(expected.first_chunk().unwrap()).unwrap(),
        expected.len()
    );
}

#[test]
fn properties_are_as_specified() {
    let list = [
        ("PIDs", Value::Numbers(vec![7])),
        ("Slice", Value::Text("a.slice".into())),
        ("MemoryMax", Value::U64(0x0102_0304)),
        (
            "DeviceAllow",
            Value::Pairs(vec![("char-*".into(), "m".into())]),
        ),
    ];
    let mut body = Encoder::default();
    body.properties(list.iter().map(|(name, value)| (*name, value)));
    let call = Call {
        destination: None,
        path: "/",
        interface: "a.b",
        member: "M",
        signature: "a(sv)",
        body,
    };
    let bytes = call.encode(3);
    let mut expected = Vec::new();
    // 138 bytes of elements, the first at the next multiple of 8.
    expected.extend_from_slice(b"\x8a\x00\x00\x00\x00\x00\x00\x00");
    expected.extend_from_slice(b"\x04\x00\x00\x00PIDs\x00\x02au\x00\x00\x00\x00");
    expected.extend_from_slice(b"\x04\x00\x00\x00\x07\x00\x00\x00");
    expected.extend_from_slice(b"\x05\x00\x00\x00Slice\x00\x01s\x00\x00\x00\x00");
    expected.extend_from_slice(b"\x07\x00\x00\x00a.slice\x00\x00\x00\x00\x00");
    expected
        .extend_from_slice(b"\x09\x00\x00\x00MemoryMax\x00\x01t\x00\x00\x00\x00\x00\x00\x00\x00");
    expected.extend_from_slice(b"\x04\x03\x02\x01\x00\x00\x00\x00");
    expected.extend_from_slice(b"\x0b\x00\x00\x00DeviceAllow\x00\x05a(ss)\x00\x00");
    expected.extend_from_slice(b"\x12\x00\x00\x00\x00\x00\x00\x00");
    expected.extend_from_slice(b"\x06\x00\x00\x00char-*\x00\x00\x01\x00\x00\x00m\x00");
    assert_eq!(&bytes[bytes.len() - expected.len()..], expected);
    // The body's length in the header.
    assert_eq!(bytes[4..8], 146_u32.to_le_bytes());
}

#[test]
fn damaged_messages_are_refused() {
    let whole = big(4, &[field(2, b's', "a.b"), field(3, b's', "M")], "", &[], 1);
    assert_eq!(Message::decode(&whole).unwrap().member, "M");
    for end in 0..whole.len() {
        // Cut anywhere: an error, or (in the padding at the end) no less than the whole.
        if let Ok(message) = Message::decode(&whole[..end]) {
            assert_eq!(message.member, "M", "cut at {end}");
        }
    }
    let mut header = *whole.first_chunk::<FIXED>().unwrap();
    header[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(length(&header).unwrap_err(), "too large");
    header[0] = b'x';
    assert!(length(&header).is_err());
}

#[test]
fn versions() {
    for (text, number) in [
        ("252.39-1~deb12u1", 252),
        ("v245", 245),
        ("257 (257.4-1)", 257),
        ("239", 239),
        ("", 0),
    ] {
        assert_eq!(version(text), number, "{text}");
    }
}

// What the bus sends.

fn pad(bytes: &mut Vec<u8>, to: usize) {
    while !bytes.len().is_multiple_of(to) {
        bytes.push(0);
    }
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    pad(bytes, 4);
    bytes.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
}

fn texts(list: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    list.iter().for_each(|one| text(&mut body, one));
    body
}

fn field(code: u8, typ: u8, value: &str) -> Vec<u8> {
    let mut out = vec![code, 1, typ, 0];
    text(&mut out, value);
    out
}

fn reply_to(serial: u32) -> Vec<u8> {
    let mut out = vec![5, 1, b'u', 0];
    out.extend_from_slice(&serial.to_be_bytes());
    out
}

fn big(kind: u8, fields: &[Vec<u8>], signature: &str, body: &[u8], serial: u32) -> Vec<u8> {
    let mut out = vec![b'B', kind, 1, 1];
    out.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
    out.extend_from_slice(&serial.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    for field in fields {
        pad(&mut out, 8);
        out.extend_from_slice(field);
    }
    if !signature.is_empty() {
        pad(&mut out, 8);
        out.extend_from_slice(&[8, 1, b'g', 0, u8::try_from(signature.len()).unwrap()]);
        out.extend_from_slice(signature.as_bytes());
        out.push(0);
    }
    let length = u32::try_from(out.len() - FIXED).unwrap();
    out[12..16].copy_from_slice(&length.to_be_bytes());
    pad(&mut out, 8);
    out.extend_from_slice(body);
    out
}

enum Do {
    /// A reply with these texts, of this signature.
    Return(&'static str, Vec<&'static str>),
    Error(&'static str),
    /// JobRemoved of a job of a unit.
    Removed(&'static str, &'static str, &'static str),
    /// A signal nobody asked for.
    Noise,
}

fn bytes_of(what: &Do, serial: u32) -> Vec<u8> {
    match what {
        Do::Return("v", list) => {
            let mut body = b"\x01s\x00".to_vec();
            text(&mut body, list[0]);
            big(2, &[reply_to(serial)], "v", &body, 9)
        }
        Do::Return(signature, list) => big(2, &[reply_to(serial)], signature, &texts(list), 9),
        Do::Error(name) => {
            let fields = [reply_to(serial), field(4, b's', name)];
            big(3, &fields, "s", &texts(&["its words"]), 9)
        }
        Do::Removed(job, unit, result) => {
            let mut body = 7_u32.to_be_bytes().to_vec();
            [job, unit, result]
                .iter()
                .for_each(|one| text(&mut body, one));
            let fields = [
                field(1, b'o', "/org/freedesktop/systemd1"),
                field(2, b's', "org.freedesktop.systemd1.Manager"),
                field(3, b's', "JobRemoved"),
                field(7, b's', ":1.0"),
            ];
            big(4, &fields, "uoss", &body, 9)
        }
        Do::Noise => {
            let fields = [
                field(1, b'o', "/org/freedesktop/DBus"),
                field(2, b's', "org.freedesktop.DBus"),
                field(3, b's', "NameAcquired"),
            ];
            big(4, &fields, "s", &texts(&[":1.5"]), 9)
        }
    }
}

struct Fake {
    _dir: tempfile::TempDir,
    path: PathBuf,
    instance: Instance,
    /// The methods that were called, in order.
    thread: JoinHandle<Vec<String>>,
}

impl Fake {
    /// `authentication`: what it says to AUTH; `None` for nothing at all.
    fn new(
        authentication: Option<&'static str>,
        script: impl FnMut(&str) -> Vec<Do> + Send + 'static,
    ) -> Self {
        Self::of(Instance::System, authentication, script)
    }

    fn of(
        instance: Instance,
        authentication: Option<&'static str>,
        mut script: impl FnMut(&str) -> Vec<Do> + Send + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bus");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            serve(&mut stream, instance, authentication, &mut script)
        });
        Self {
            _dir: dir,
            path,
            instance,
            thread,
        }
    }

    fn systemd(&self) -> Systemd {
        Systemd::at(&format!("unix:path={}", self.path.display()), self.instance).unwrap()
    }

    fn calls(self) -> Vec<String> {
        self.thread.join().unwrap()
    }
}

fn line(stream: &mut UnixStream) -> String {
    let mut out = Vec::new();
    while !out.ends_with(b"\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap() == 0 {
            break;
        }
        out.push(byte[0]);
    }
    String::from_utf8(out).unwrap()
}

fn serve(
    stream: &mut UnixStream,
    instance: Instance,
    authentication: Option<&str>,
    script: &mut impl FnMut(&str) -> Vec<Do>,
) -> Vec<String> {
    let mut calls = Vec::new();
    let hello = line(stream);
    match instance {
        // "0" in hexadecimal: the tests run as root; anybody else has another number.
        Instance::System => assert!(hello.starts_with("\0AUTH EXTERNAL 3"), "{hello:?}"),
        Instance::User => assert_eq!(hello, "\0AUTH EXTERNAL\r\n"),
    }
    let Some(authentication) = authentication else {
        // Until the other side gives up.
        while !line(stream).is_empty() {}
        return calls;
    };
    if instance == Instance::User {
        stream.write_all(b"DATA\r\n").unwrap();
        assert_eq!(line(stream), "DATA\r\n");
    }
    assert_eq!(line(stream), "BEGIN\r\n");
    stream.write_all(authentication.as_bytes()).unwrap();
    loop {
        let mut fixed = [0; FIXED];
        if stream.read_exact(&mut fixed).is_err() {
            return calls;
        }
        let mut bytes = fixed.to_vec();
        bytes.resize(length(&fixed).unwrap(), 0);
        stream.read_exact(&mut bytes[FIXED..]).unwrap();
        let serial = u32::from_le_bytes(*bytes[8..].first_chunk().unwrap());
        let message = Message::decode(&bytes).unwrap();
        for what in script(&message.member) {
            // A client that has given up is no failure of the bus.
            let _ = stream.write_all(&bytes_of(&what, serial));
        }
        calls.push(message.member);
    }
}

const OK: Option<&str> = Some("OK 1234deadbeef\r\n");

/// What every bus answers; the rest is the test's.
fn bus(mut more: impl FnMut(&str) -> Vec<Do>) -> impl FnMut(&str) -> Vec<Do> {
    move |member| match member {
        "Hello" => vec![Do::Return("s", vec![":1.5"]), Do::Noise],
        "AddMatch" => vec![Do::Return("", vec![])],
        other => more(other),
    }
}

fn unit() -> Unit {
    Unit::new(Some(Path::new("a.slice:p:c")), "c").unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(200)
}

fn start(fake: &Fake, deadline: Instant) -> super::Result<()> {
    fake.systemd().start(&unit(), 7, "test", &[], deadline)
}

#[test]
fn a_scope_is_started_and_awaited() {
    let fake = Fake::new(
        OK,
        bus(|_| {
            vec![
                Do::Removed("/another/job", "p-c.scope", "canceled"),
                Do::Return("o", vec![JOB]),
                Do::Noise,
                Do::Removed(JOB, "p-c.scope", "done"),
            ]
        }),
    );
    start(&fake, Instant::now() + LONG).unwrap();
    assert_eq!(fake.calls(), ["Hello", "AddMatch", "StartTransientUnit"]);
}

#[test]
fn the_end_of_a_job_may_come_before_its_name() {
    let fake = Fake::new(
        OK,
        bus(|_| {
            vec![
                Do::Removed(JOB, "p-c.scope", "done"),
                Do::Return("o", vec![JOB]),
            ]
        }),
    );
    start(&fake, Instant::now() + LONG).unwrap();
}

#[test]
fn a_failed_job_is_an_error() {
    let fake = Fake::new(
        OK,
        bus(|_| {
            vec![
                Do::Return("o", vec![JOB]),
                Do::Removed(JOB, "p-c.scope", "failed"),
            ]
        }),
    );
    let error = start(&fake, Instant::now() + LONG).unwrap_err();
    assert!(matches!(&error, Error::Job { result, .. } if result == "failed"));
    assert!(!error.is_silence());
    assert!(error.to_string().contains("p-c.scope"), "{error}");
}

#[test]
fn every_silence_has_a_name() {
    // Nothing after accept.
    let fake = Fake::new(None, |_| vec![]);
    let error = start(&fake, soon()).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_silence());
    assert!(
        error.to_string().contains("authenticate: no answer"),
        "{error}"
    );
    assert!(fake.calls().is_empty());
    // Nothing after the authentication.
    let fake = Fake::new(OK, |_| vec![]);
    let error = start(&fake, soon()).unwrap_err();
    assert!(error.to_string().contains("Hello: no answer"), "{error}");
    // Nothing to the call, but signals all the time.
    let fake = Fake::new(OK, bus(|_| vec![Do::Noise, Do::Noise]));
    let error = start(&fake, soon()).unwrap_err();
    assert!(
        matches!(&error, Error::Deadline { step: "StartTransientUnit", waited } if *waited >= Duration::from_millis(150)),
        "{error}"
    );
    // No end of the job; somebody else's is not ours.
    let fake = Fake::new(
        OK,
        bus(|_| {
            vec![
                Do::Return("o", vec![JOB]),
                Do::Removed(JOB, "other.scope", "done"),
            ]
        }),
    );
    let error = start(&fake, soon()).unwrap_err();
    assert!(
        matches!(&error, Error::Deadline { step, .. } if *step == "JobRemoved of StartTransientUnit"),
        "{error}"
    );
    assert!(error.is_silence());
}

#[test]
fn a_bus_that_goes_away_or_says_no() {
    let fake = Fake::new(Some("REJECTED EXTERNAL\r\n"), |_| vec![]);
    let error = start(&fake, Instant::now() + LONG).unwrap_err();
    assert!(error.to_string().contains("REJECTED EXTERNAL"), "{error}");

    let fake = Fake::new(
        OK,
        bus(|_| vec![Do::Error("org.freedesktop.DBus.Error.AccessDenied")]),
    );
    let error = start(&fake, Instant::now() + LONG).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("AccessDenied: its words"), "{text}");
    assert!(!error.is_silence());

    let gone = Systemd::at(
        "unix:path=/nonexistent/bus;unix:abstract=holdfast-nobody-listens",
        Instance::System,
    )
    .unwrap();
    let error = gone
        .start(&unit(), 7, "test", &[], Instant::now() + LONG)
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("/nonexistent/bus: connect: No such file"),
        "{text}"
    );
    assert!(
        text.contains("holdfast-nobody-listens: connect: Connection refused"),
        "{text}"
    );
    assert!(matches!(
        Systemd::at("tcp:host=x", Instance::System),
        Err(Error::Address { .. })
    ));
}

/// youki #3258: a scope that is left over kept its name from ever being used again.
#[test]
fn a_leftover_scope_is_stopped_and_started_anew() {
    let mut tries = 0;
    let fake = Fake::new(
        OK,
        bus(move |member| match member {
            "StartTransientUnit" => {
                tries += 1;
                if tries == 1 {
                    vec![Do::Error("org.freedesktop.systemd1.UnitExists")]
                } else {
                    vec![
                        Do::Return("o", vec![JOB]),
                        Do::Removed(JOB, "p-c.scope", "done"),
                    ]
                }
            }
            "StopUnit" => vec![
                Do::Return("o", vec!["/stop"]),
                Do::Removed("/stop", "p-c.scope", "done"),
            ],
            _ => vec![Do::Error("org.freedesktop.systemd1.NoSuchUnit")],
        }),
    );
    start(&fake, Instant::now() + LONG).unwrap();
    assert_eq!(
        fake.calls(),
        [
            "Hello",
            "AddMatch",
            "StartTransientUnit",
            "StopUnit",
            "ResetFailedUnit",
            "StartTransientUnit"
        ]
    );
}

#[test]
fn a_running_slice_is_taken_as_it_is() {
    let slice = Unit::new(Some(Path::new("a.slice:x:a-b.slice")), "c").unwrap();
    let fake = Fake::new(
        OK,
        bus(|_| vec![Do::Error("org.freedesktop.systemd1.UnitExists")]),
    );
    fake.systemd()
        .start(&slice, 7, "test", &[], Instant::now() + LONG)
        .unwrap();
    assert_eq!(fake.calls(), ["Hello", "AddMatch", "StartTransientUnit"]);
}

/// youki #607: deleting failed when the scope had gone by itself.
#[test]
fn a_scope_that_is_gone_is_stopped() {
    let fake = Fake::new(
        OK,
        bus(|_| vec![Do::Error("org.freedesktop.systemd1.NoSuchUnit")]),
    );
    fake.systemd().stop(&unit(), Instant::now() + LONG).unwrap();
    assert_eq!(fake.calls(), ["Hello", "AddMatch", "StopUnit"]);
}

#[test]
fn only_what_systemd_knows_is_sent() {
    let old = Property {
        name: "MemoryMax",
        value: Value::U64(1),
        since: 0,
    };
    let new = Property {
        name: "AllowedCPUs",
        value: Value::Bytes(vec![1]),
        since: 244,
    };
    for (version, sent) in [("239-1", 1), ("244", 2)] {
        let fake = Fake::new(
            OK,
            bus(move |member| match member {
                "Get" => vec![Do::Return("v", vec![version])],
                _ => vec![Do::Return("", vec![])],
            }),
        );
        let mut bus = super::bus::Bus::connect(
            &super::bus::Address::parse(
                &format!("unix:path={}", fake.path.display()),
                Instance::System,
            ),
            "p-c.scope",
            Instant::now() + LONG,
        )
        .unwrap();
        let known = super::scope::known(&mut bus, &[old.clone(), new.clone()]).unwrap();
        assert_eq!(known.len(), sent, "{version}");
        assert_eq!(known[0], old);
        drop(bus);
        assert_eq!(fake.calls(), ["Hello", "AddMatch", "Get"]);
    }
    let fake = Fake::new(OK, bus(|_| vec![Do::Return("", vec![])]));
    fake.systemd()
        .update(&unit(), &[old], Instant::now() + LONG)
        .unwrap();
    assert_eq!(fake.calls(), ["Hello", "AddMatch", "SetUnitProperties"]);
}

/// systemd's own socket: no greeting, everybody's jobs, and it is tried when the bus is not there.
#[test]
fn systemd_answers_without_a_bus() {
    let fake = Fake::new(OK, |_| {
        vec![
            Do::Removed("/other", "other.scope", "failed"),
            Do::Return("o", vec![JOB]),
            Do::Removed(JOB, "p-c.scope", "done"),
        ]
    });
    let addresses = format!(
        "unix:path=/nonexistent/bus;unix:path={}",
        fake.path.display()
    );
    Systemd::at(&addresses, Instance::System)
        .unwrap()
        .directly()
        .start(&unit(), 7, "test", &[], Instant::now() + LONG)
        .unwrap();
    assert_eq!(fake.calls(), ["StartTransientUnit"]);
}

/// It says itself where it is, takes processes in, and hears from nobody what a user namespace would make of our id.
#[test]
fn a_user_s_systemd_is_asked_where_it_is() {
    const AT: &str = "/user.slice/user-1000.slice/user@1000.service";
    let fake = Fake::of(Instance::User, OK, bus(|_| vec![Do::Return("v", vec![AT])]));
    let found = fake.systemd().control_group(Instant::now() + LONG).unwrap();
    assert_eq!(found, Path::new(AT));
    assert_eq!(fake.calls(), ["Hello", "Get"]);

    let unit = Unit::of_user(None, "c", &found).unwrap();
    let fake = Fake::of(Instance::User, OK, bus(|_| vec![Do::Return("", vec![])]));
    fake.systemd()
        .attach(&unit, 7, Instant::now() + LONG)
        .unwrap();
    assert_eq!(fake.calls(), ["Hello", "AddMatch", "AttachProcessesToUnit"]);
    // A bus that wants more than the socket's credentials.
    let fake = Fake::of(Instance::User, Some("REJECTED EXTERNAL\r\n"), |_| vec![]);
    let error = fake.systemd().control_group(soon()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("REJECTED") && text.contains("systemctl --user"),
        "{text}"
    );
}
