//! A connection to the system bus, or to systemd itself, that never waits beyond its deadline.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::wire::{Call, Encoder, FIXED, Kind, Message, length};
use super::{Attempt, Error, Instance, Result};
use crate::sys;

/// The name systemd has on the bus.
const SYSTEMD: &str = "org.freedesktop.systemd1";
/// The object all units are managed by.
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
/// Its interface.
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// A line of the authentication is shorter than this.
const LINE_LIMIT: usize = 1024;

/// Where to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// As written in a D-Bus address: `unix:path=/x`.
    pub(super) text: String,
    pub(super) socket: Socket,
    /// systemd itself listens, no bus is between: nobody has to be named, greeted or asked for signals.
    pub(super) direct: bool,
    /// Whose systemd is behind it.
    pub(super) instance: Instance,
}

/// The two kinds of names of a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Socket {
    Path(Vec<u8>),
    Abstract(Vec<u8>),
}

impl Address {
    /// The bus's usual place, then systemd's own socket: it still answers when the bus daemon is dead or hung.
    pub(super) fn usual() -> Vec<Self> {
        Self::both(
            "/run/dbus/system_bus_socket",
            "/run/systemd/private",
            Instance::System,
        )
    }

    /// The same of a user, in his `XDG_RUNTIME_DIR`.
    pub(super) fn usual_of_user(runtime_dir: &str) -> Vec<Self> {
        Self::both(
            &format!("{runtime_dir}/bus"),
            &format!("{runtime_dir}/systemd/private"),
            Instance::User,
        )
    }

    fn both(bus: &str, private: &str, instance: Instance) -> Vec<Self> {
        let at = |path: &str, direct| Self {
            text: format!("unix:path={path}"),
            socket: Socket::Path(path.into()),
            direct,
            instance,
        };
        vec![at(bus, false), at(private, true)]
    }

    /// The addresses of `DBUS_SYSTEM_BUS_ADDRESS` or `DBUS_SESSION_BUS_ADDRESS` (D-Bus specification, "Server Addresses"): `;` between them, other
    /// transports than Unix sockets left out.
    pub(super) fn parse(text: &str, instance: Instance) -> Vec<Self> {
        let one = |text: &str| {
            let keys = text.strip_prefix("unix:")?;
            keys.split(',').find_map(|pair| {
                let (key, value) = pair.split_once('=')?;
                let socket = match key {
                    "path" => Socket::Path(unescape(value)?),
                    "abstract" => Socket::Abstract(unescape(value)?),
                    _ => return None,
                };
                Some(Self {
                    text: text.to_owned(),
                    socket,
                    direct: false,
                    instance,
                })
            })
        };
        text.split(';').filter_map(one).collect()
    }
}

/// `%2f` is a slash.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    Some(out)
}

/// A job of systemd that has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Removed {
    pub(super) job: String,
    pub(super) unit: String,
    pub(super) result: String,
}

/// An authenticated connection.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    began: Instant,
    deadline: Instant,
    direct: bool,
    serial: u32,
    /// What has come and is not taken yet.
    input: VecDeque<u8>,
    /// The unit whose jobs are listened to.
    unit: String,
    /// Ends of jobs that came before they were asked for: one for each job we begin.
    removed: VecDeque<Removed>,
    /// The answer of `AddMatch`, not yet seen.
    matched: Option<u32>,
}

impl Bus {
    /// Connects to the first address that works. Each gets an equal share of what is left of the time, so that a bus
    /// that hangs does not use up the time of systemd's own socket. Ends of `unit`'s jobs are listened to at once.
    pub(super) fn connect(addresses: &[Address], unit: &str, deadline: Instant) -> Result<Self> {
        let mut tried = Vec::new();
        for (n, address) in addresses.iter().enumerate() {
            let left = u32::try_from(addresses.len() - n).unwrap_or(1);
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            match Self::open(address, unit, Instant::now() + share) {
                Ok(mut bus) => {
                    bus.deadline = deadline;
                    return Ok(bus);
                }
                Err(error) => {
                    log::debug!("{}: {error}", address.text);
                    tried.push(Attempt {
                        address: address.text.clone(),
                        error: Box::new(error),
                    });
                }
            }
        }
        let instance = addresses
            .first()
            .map_or(Instance::System, |address| address.instance);
        Err(Error::Unreachable { tried, instance })
    }

    fn open(address: &Address, unit: &str, deadline: Instant) -> Result<Self> {
        let began = Instant::now();
        let name = match &address.socket {
            Socket::Path(path) => sys::SocketName::Path(path),
            Socket::Abstract(name) => sys::SocketName::Abstract(name),
        };
        let fd = sys::connect(&name, deadline).map_err(|source| match source.kind() {
            io::ErrorKind::TimedOut => Error::Deadline {
                step: "connect",
                waited: began.elapsed(),
            },
            _ => Error::Io {
                step: "connect",
                source,
            },
        })?;
        let mut this = Self {
            stream: UnixStream::from(fd),
            began,
            deadline,
            direct: address.direct,
            serial: 0,
            input: VecDeque::new(),
            unit: unit.to_owned(),
            removed: VecDeque::new(),
            matched: None,
        };
        this.authenticate(address.instance)?;
        if !this.direct {
            this.greet()?;
        }
        Ok(this)
    }

    /// EXTERNAL (D-Bus specification, "Authentication Protocol"): the socket's credentials speak for us.
    ///
    /// BEGIN goes out at once, and no message before the OK: systemd's own socket (252) does not look again at a message
    /// that it has read together with BEGIN, and never answers it.
    fn authenticate(&mut self, instance: Instance) -> Result<()> {
        const STEP: &str = "authenticate";
        match instance {
            Instance::System => {
                use std::fmt::Write as _;
                let mut line = String::from("\0AUTH EXTERNAL ");
                for digit in sys::effective_uid().to_string().bytes() {
                    // Writing to a String cannot fail.
                    let _ = write!(line, "{digit:02x}");
                }
                line.push_str("\r\nBEGIN\r\n");
                self.write(STEP, line.as_bytes())?;
            }
            // In a user namespace (podman) our id is not the one that the bus sees: whoever names none is asked (DATA),
            // and who then answers nothing is whom the socket says.
            Instance::User => {
                self.write(STEP, b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
                let question = self.line(STEP)?;
                if question != b"DATA\r\n" && question != b"DATA \r\n" {
                    return refused(&question);
                }
            }
        }
        let answer = self.line(STEP)?;
        if answer.starts_with(b"OK ") || answer == b"OK\r\n" {
            Ok(())
        } else {
            refused(&answer)
        }
    }

    /// One line of the authentication, with its end.
    fn line(&mut self, step: &'static str) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.read(step, &mut byte)?;
            line.extend_from_slice(&byte);
            if line.len() > LINE_LIMIT {
                return Err(Error::Protocol {
                    step,
                    what: "an endless line",
                });
            }
        }
        Ok(line)
    }

    /// Says hello, and asks for the ends of our unit's jobs; the answer to the latter is awaited with the first job.
    fn greet(&mut self) -> Result<()> {
        let hello = self.post("Hello", &bus_call("Hello", "", Encoder::default()))?;
        // Who begins no job waits for none.
        if self.unit.is_empty() {
            return self.answer("Hello", hello).map(drop);
        }
        let mut body = Encoder::default();
        // The unit's name has no quote: see `Unit::new`.
        body.text(&format!(
            "type='signal',sender='{SYSTEMD}',path='{MANAGER_PATH}',interface='{MANAGER}',member='JobRemoved',arg2='{}'",
            self.unit
        ));
        let matched = self.post("AddMatch", &bus_call("AddMatch", "s", body))?;
        self.answer("Hello", hello)?;
        self.matched = Some(matched);
        Ok(())
    }

    /// Calls a method of systemd's manager.
    pub(super) fn call(
        &mut self,
        member: &'static str,
        signature: &str,
        body: Encoder,
    ) -> Result<Message> {
        self.call_at(MANAGER, member, signature, body)
    }

    /// The value of a text property of the manager.
    pub(super) fn manager_property(&mut self, name: &str) -> Result<String> {
        const STEP: &str = "Get";
        let mut body = Encoder::default();
        body.text(MANAGER);
        body.text(name);
        let answer = self.call_at("org.freedesktop.DBus.Properties", STEP, "ss", body)?;
        let mut arguments = answer.arguments();
        match (arguments.signature().as_deref(), arguments.text()) {
            (Some("s"), Some(text)) => Ok(text),
            _ => Err(Error::Protocol {
                step: STEP,
                what: "a property that is no text",
            }),
        }
    }

    fn call_at(
        &mut self,
        interface: &str,
        member: &'static str,
        signature: &str,
        body: Encoder,
    ) -> Result<Message> {
        let call = Call {
            destination: Some(SYSTEMD).filter(|_| !self.direct),
            path: MANAGER_PATH,
            interface,
            member,
            signature,
            body,
        };
        let serial = self.post(member, &call)?;
        if let Some(matched) = self.matched.take() {
            self.answer("AddMatch", matched)?;
        }
        self.answer(member, serial)
    }

    /// The end of a job that a call has begun.
    pub(super) fn job_end(&mut self, step: &'static str, job: &str) -> Result<Removed> {
        loop {
            while let Some(removed) = self.removed.pop_front() {
                if removed.job == job {
                    return Ok(removed);
                }
                // An earlier job of our unit, begun by somebody else.
            }
            self.receive(step)?;
        }
    }

    fn post(&mut self, step: &'static str, call: &Call<'_>) -> Result<u32> {
        self.serial += 1;
        let bytes = call.encode(self.serial);
        self.write(step, &bytes)?;
        Ok(self.serial)
    }

    fn answer(&mut self, step: &'static str, serial: u32) -> Result<Message> {
        loop {
            if let Some(message) = self.receive(step)?
                && message.reply_to == Some(serial)
            {
                return match message.kind {
                    Kind::Error => Err(Error::Refused {
                        step,
                        unit: self.unit.clone(),
                        message: if message.signature.starts_with('s') {
                            message.arguments().text().unwrap_or_default()
                        } else {
                            String::new()
                        },
                        name: message.error,
                    }),
                    Kind::Call | Kind::Return | Kind::Signal => Ok(message),
                };
            }
        }
    }

    /// One message: an answer is given back, the end of a job of ours kept, anything else is not for us.
    fn receive(&mut self, step: &'static str) -> Result<Option<Message>> {
        let protocol = |what| Error::Protocol { step, what };
        let mut fixed = [0; FIXED];
        self.read(step, &mut fixed)?;
        let mut bytes = fixed.to_vec();
        bytes.resize(length(&fixed).map_err(protocol)?, 0);
        self.read(step, bytes.get_mut(FIXED..).unwrap_or_default())?;
        let message = Message::decode(&bytes).map_err(protocol)?;
        match message.kind {
            Kind::Return | Kind::Error => Ok(Some(message)),
            Kind::Signal if message.member == "JobRemoved" && message.interface == MANAGER => {
                let mut arguments = message.arguments();
                let parts = (
                    arguments.u32(),
                    arguments.text(),
                    arguments.text(),
                    arguments.text(),
                );
                let (Some(_id), Some(job), Some(unit), Some(result)) = parts else {
                    return Err(protocol("a damaged JobRemoved"));
                };
                // Without a bus the ends of everybody's jobs come.
                if unit == self.unit {
                    self.removed.push_back(Removed { job, unit, result });
                }
                Ok(None)
            }
            Kind::Signal | Kind::Call => Ok(None),
        }
    }

    fn left(&self, step: &'static str) -> Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Deadline {
                step,
                waited: self.began.elapsed(),
            });
        }
        Ok(left)
    }

    fn write(&mut self, step: &'static str, mut bytes: &[u8]) -> Result<()> {
        let io = |source| Error::Io { step, source };
        while !bytes.is_empty() {
            let left = self.left(step)?;
            self.stream.set_write_timeout(Some(left)).map_err(io)?;
            match self.stream.write(bytes) {
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(error) => again(error).map_err(io)?,
            }
        }
        Ok(())
    }

    /// Exactly as many bytes as `into` holds. More may be taken from the socket: signals come unasked.
    fn read(&mut self, step: &'static str, into: &mut [u8]) -> Result<()> {
        let io = |source| Error::Io { step, source };
        while self.input.len() < into.len() {
            let left = self.left(step)?;
            self.stream.set_read_timeout(Some(left)).map_err(io)?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => self.input.extend(chunk.get(..n).unwrap_or_default()),
                Err(error) => again(error).map_err(io)?,
            }
        }
        self.input.read_exact(into).map_err(io)
    }
}

fn refused(answer: &[u8]) -> Result<()> {
    Err(Error::Authentication {
        answer: String::from_utf8_lossy(answer).trim_end().to_owned(),
    })
}

/// A timeout and a signal are no failures: the loop looks at the deadline.
fn again(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => Ok(()),
        _ => Err(error),
    }
}

fn bus_call<'a>(member: &'a str, signature: &'a str, body: Encoder) -> Call<'a> {
    Call {
        destination: Some("org.freedesktop.DBus"),
        path: "/org/freedesktop/DBus",
        interface: "org.freedesktop.DBus",
        member,
        signature,
        body,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_understood() {
        let all = Address::parse(
            "tcp:host=x;unix:path=/a%20b,guid=1;unix:guid=2,abstract=x;unix:tmpdir=/t",
            Instance::System,
        );
        let sockets: Vec<_> = all.iter().map(|address| address.socket.clone()).collect();
        assert_eq!(
            sockets,
            [
                Socket::Path(b"/a b".to_vec()),
                Socket::Abstract(b"x".to_vec())
            ]
        );
        assert!(Address::parse("unix:path=/a%2", Instance::System).is_empty());
        assert!(Address::parse("", Instance::User).is_empty());
    }
}
