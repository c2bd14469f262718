//! Copies one stream on the event loop, without a thread and without memory while idle.

use std::io::{self, Read, Write};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use super::sink::{FileWrite, Kept, Policy, Sink, Source, write_file};
use crate::resume;
use crate::resume::descriptor::{Descriptor, Name};
use crate::resume::inherited::Inherited;
use crate::sys;
use serde::{Deserialize, Serialize};

/// Bytes moved at a time, on the stack: an idle stream holds no buffer.
const CHUNK: usize = 16 * 1024;
/// Pause between two tries to write into a file that takes nothing.
const RETRY: Duration = Duration::from_millis(100);

/// A stream as the slate has it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PumpRecord {
    stream: String,
    source: Name,
    sink: SinkRecord,
    /// Milliseconds after which output is dropped; none: never.
    drop_after: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
enum SinkRecord {
    Pipe(Name),
    Fifo(Name, Name),
    File(Name),
    Nowhere,
}

/// A stream that is ready to be copied.
#[derive(Debug)]
pub(super) struct Pump {
    stream: &'static str,
    source: Source,
    output: Output,
    /// Read by the image before, and not written.
    left: Vec<u8>,
}

/// The number of the latest stream.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// See [`super::number_after`].
pub(super) fn number_after(inherited: &Inherited) {
    NUMBER.fetch_max(inherited.highest("pump/"), Ordering::Relaxed);
}

fn stream_of(text: &str) -> &'static str {
    ["stdin", "stdout", "stderr", "terminal"]
        .into_iter()
        .find(|stream| *stream == text)
        .unwrap_or("stream")
}

impl Pump {
    /// From `source` to `sink`.
    pub(super) fn new(stream: &'static str, source: Source, sink: Sink, policy: Policy) -> Self {
        let kept = Kept(NUMBER.fetch_add(1, Ordering::Relaxed) + 1);
        let record = PumpRecord {
            stream: stream.to_owned(),
            source: source.0.get_ref().name(),
            sink: match &sink {
                Sink::Pipe(fd) => SinkRecord::Pipe(fd.get_ref().name()),
                Sink::Fifo { writer, _keepalive } => {
                    SinkRecord::Fifo(writer.get_ref().name(), _keepalive.name())
                }
                Sink::File(file) => SinkRecord::File(file.name()),
                Sink::Nowhere => SinkRecord::Nowhere,
            },
            drop_after: match policy {
                Policy::Block => None,
                Policy::Drop { after } => Some(u64::try_from(after.as_millis()).unwrap_or(0)),
            },
        };
        resume::put_json(&kept.key(), &record);
        Self {
            stream,
            source,
            output: Output::new(stream, sink, policy, kept),
            left: Vec::new(),
        }
    }

    /// Its number on the slate.
    pub(super) fn number(&self) -> u64 {
        self.output.kept.0
    }

    /// One of the image before; none if it has come to its end.
    pub(super) fn restore(number: u64, inherited: &mut Inherited) -> Option<Self> {
        let record: PumpRecord = inherited.json(&format!("pump/{number}"))?;
        let mut left = inherited
            .bytes(&format!("left/{number}"))
            .unwrap_or_default();
        let sent = inherited
            .bytes(&format!("sent/{number}"))
            .and_then(|bytes| bytes.first_chunk::<8>().copied())
            .map_or(0, u64::from_le_bytes);
        let sent = usize::try_from(sent).unwrap_or(0).min(left.len());
        left.drain(..sent);
        let kept = Kept(number);
        {
            let _step = resume::step();
            kept.done();
            if !left.is_empty() {
                kept.left(&left);
            }
        }
        // It names its descriptors again.
        resume::put_json(&kept.key(), &record);
        let mut take = |fd| inherited.descriptor(fd);
        let opened = (|| {
            let sink = match record.sink {
                SinkRecord::Pipe(fd) => Sink::pipe(take(fd)?)?,
                SinkRecord::Fifo(writer, keepalive) => Sink::fifo(take(writer)?, take(keepalive)?)?,
                SinkRecord::File(fd) => Sink::File(Arc::new(take(fd)?)),
                SinkRecord::Nowhere => Sink::Nowhere,
            };
            Ok::<_, io::Error>((Source::new(take(record.source)?)?, sink))
        })();
        match opened {
            Ok((source, sink)) => {
                let stream = stream_of(&record.stream);
                let policy = match record.drop_after {
                    None => Policy::Block,
                    Some(after) => Policy::Drop {
                        after: Duration::from_millis(after),
                    },
                };
                Some(Self {
                    stream,
                    source,
                    output: Output::new(stream, sink, policy, kept),
                    left,
                })
            }
            Err(error) => {
                log::error!("{} cannot be gone on with: {error}", record.stream);
                None
            }
        }
    }
}

/// What was dropped, and why, since the last marker.
#[derive(Debug, Default)]
struct Lost {
    bytes: u64,
    why: String,
}

/// A sink, and what it has not taken.
#[derive(Debug)]
struct Output {
    kept: Kept,
    stream: &'static str,
    sink: Sink,
    policy: Policy,
    lost: Lost,
    /// A write that did not return in time, and the number of its bytes.
    hanging: Option<(JoinHandle<FileWrite>, usize)>,
    retry_at: Instant,
    /// It will never take anything again.
    broken: Option<io::Error>,
    /// Whether source and sink are pipes, as far as is known.
    splices: bool,
}

impl Output {
    fn new(stream: &'static str, sink: Sink, policy: Policy, kept: Kept) -> Self {
        Self {
            kept,
            stream,
            sink,
            policy,
            lost: Lost::default(),
            hanging: None,
            retry_at: Instant::now(),
            broken: None,
            splices: true,
        }
    }

    fn lose(&mut self, bytes: usize, why: &dyn std::fmt::Display) {
        if bytes == 0 {
            return;
        }
        if self.lost.bytes == 0 {
            self.lost.why = why.to_string();
            log::warn!("{}: output is dropped from here on: {why}", self.stream);
        }
        self.lost.bytes += bytes as u64;
    }

    fn marker(&self) -> Option<String> {
        (self.lost.bytes > 0).then(|| {
            format!(
                "\n[holdfast: {} bytes of {} were dropped here: {}]\n",
                self.lost.bytes, self.stream, self.lost.why
            )
        })
    }

    fn marked(&mut self) {
        log::warn!(
            "{}: output is taken again; {} bytes were dropped: {}",
            self.stream,
            self.lost.bytes,
            self.lost.why
        );
        self.lost = Lost::default();
    }

    /// Writes what can be written now; what is left has to be given to [`Output::deliver`].
    fn write_now<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        if self.broken.is_some() {
            self.lost.bytes += bytes.len() as u64;
            return &[];
        }
        let marker = self.marker();
        let mut file = match &self.sink {
            Sink::Pipe(fd) | Sink::Fifo { writer: fd, .. } => fd.get_ref(),
            Sink::File(_) => return bytes,
            Sink::Nowhere => return &[],
        };
        if let Some(marker) = marker {
            // Shorter than PIPE_BUF: all of it or nothing, pipe(7).
            match file.write_all(marker.as_bytes()) {
                Ok(()) => self.marked(),
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        self.broken = Some(error);
                    }
                    self.lost.bytes += bytes.len() as u64;
                    return &[];
                }
            }
        }
        let mut file = match &self.sink {
            Sink::Pipe(fd) | Sink::Fifo { writer: fd, .. } => fd.get_ref(),
            Sink::File(_) | Sink::Nowhere => return bytes,
        };
        match file.write(bytes) {
            Ok(written) => bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => bytes,
            Err(error) => {
                self.lose(bytes.len(), &error);
                self.broken = Some(error);
                &[]
            }
        }
    }

    /// Waits until `bytes` are written or, as the policy has it, given up.
    async fn deliver(&mut self, bytes: Vec<u8>) {
        match self.sink {
            Sink::Pipe(_) | Sink::Fifo { .. } => self.deliver_to_pipe(&bytes).await,
            Sink::File(_) => self.deliver_to_file(bytes).await,
            Sink::Nowhere => {}
        }
        let _step = resume::step();
        self.kept.done();
    }

    /// Waits until the sink, a pipe, has taken something of the source, another one, or what is there is given up.
    async fn await_room(&mut self, source: &AsyncFd<Descriptor>) {
        let (Sink::Pipe(fd) | Sink::Fifo { writer: fd, .. }) = &self.sink else {
            return;
        };
        // The source has something, so it is for the sink to wait for.
        let moving = fd.async_io(Interest::WRITABLE, |sink| {
            sys::splice(source.get_ref().as_fd(), sink.as_fd(), CHUNK)
        });
        let moved = match self.policy {
            Policy::Block => moving.await,
            Policy::Drop { after } => match tokio::time::timeout(after, moving).await {
                Ok(moved) => moved,
                Err(_) => {
                    let mut buffer = [0u8; CHUNK];
                    if let Ok(read) = source.get_ref().read(&mut buffer) {
                        self.lose(read, &"its reader takes nothing");
                    }
                    return;
                }
            },
        };
        if moved.is_err() {
            self.splices = false;
        }
    }

    async fn deliver_to_pipe(&mut self, mut bytes: &[u8]) {
        let (Sink::Pipe(fd) | Sink::Fifo { writer: fd, .. }) = &self.sink else {
            return;
        };
        let (all, kept) = (bytes.len(), &self.kept);
        while !bytes.is_empty() {
            let write = fd.async_io(Interest::WRITABLE, |mut file: &Descriptor| {
                let _step = resume::step();
                let written = file.write(bytes)?;
                kept.sent(all - bytes.len() + written);
                Ok(written)
            });
            let written = match self.policy {
                Policy::Block => write.await,
                Policy::Drop { after } => match tokio::time::timeout(after, write).await {
                    Ok(written) => written,
                    Err(_) => {
                        self.lose(bytes.len(), &"its reader takes nothing");
                        return;
                    }
                },
            };
            match written {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) => {
                    self.lose(bytes.len(), &error);
                    self.broken = Some(error);
                    return;
                }
            }
        }
    }

    async fn deliver_to_file(&mut self, mut bytes: Vec<u8>) {
        let Sink::File(file) = &self.sink else {
            return;
        };
        let file = Arc::clone(file);
        loop {
            if let Some((write, size)) = self.hanging.take() {
                if !write.is_finished() {
                    self.hanging = Some((write, size));
                    return self.lose(bytes.len(), &"the file takes nothing");
                }
                let done = write.await;
                self.judge(done, size);
            }
            if self.policy != Policy::Block && Instant::now() < self.retry_at {
                return self.lose(bytes.len(), &"the file takes nothing");
            }
            let (size, to, marker) = (bytes.len(), Arc::clone(&file), self.marker());
            let pump = self.kept.0;
            let mut write = {
                let bytes = bytes.clone();
                tokio::task::spawn_blocking(move || write_file(&to, marker, &bytes, pump))
            };
            let done = match self.policy {
                Policy::Block => (&mut write).await,
                Policy::Drop { after } => match tokio::time::timeout(after, &mut write).await {
                    Ok(done) => done,
                    Err(_) => {
                        self.hanging = Some((write, size));
                        return;
                    }
                },
            };
            if self.policy != Policy::Block {
                return self.judge(done, size);
            }
            // The process waits for the disk, and so do we.
            let Ok(done) = done else { return };
            bytes.drain(..done.written.min(size));
            {
                let _step = resume::step();
                self.kept.done();
                if !bytes.is_empty() {
                    self.kept.left(&bytes);
                }
            }
            let Some(error) = done.error else { return };
            if !std::mem::replace(&mut self.lost.why, error.to_string()).eq(&error.to_string()) {
                log::warn!("{}: its process waits for the file: {error}", self.stream);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Takes over what became of a write of `size` bytes.
    fn judge(&mut self, done: Result<FileWrite, tokio::task::JoinError>, size: usize) {
        let (marked, written, error) = match done {
            Ok(done) => (done.marked, done.written, done.error),
            Err(panic) => (false, 0, Some(io::Error::other(panic))),
        };
        if marked {
            self.marked();
        }
        if let Some(error) = error {
            self.retry_at = Instant::now() + RETRY;
            self.lose(size.saturating_sub(written), &error);
        }
    }

    /// At the end of the stream: a last try to say what was dropped.
    async fn end(&mut self) {
        if let Some((mut write, size)) = self.hanging.take()
            && let Ok(done) = tokio::time::timeout(self.policy.patience(), &mut write).await
        {
            self.judge(done, size);
        }
        if self.broken.is_none() && self.lost.bytes > 0 {
            self.retry_at = Instant::now();
            let rest = self.write_now(&[]).to_vec();
            if matches!(self.sink, Sink::File(_)) {
                self.deliver_to_file(rest).await;
            }
        }
        if self.lost.bytes > 0 {
            log::warn!(
                "{}: {} bytes were dropped: {}",
                self.stream,
                self.lost.bytes,
                self.lost.why
            );
        }
    }
}

/// What one read brought.
enum Moved {
    End,
    All,
    /// Read, but not yet written.
    Left(Vec<u8>),
    /// Not read: the sink, a pipe, takes nothing now.
    Full,
}

/// Moves bytes from pipe to pipe within the kernel: they are never in our hands alone, whenever we are killed. None
/// when that cannot be done here.
fn move_within(source: &Descriptor, output: &mut Output) -> Option<io::Result<Moved>> {
    if !output.splices || output.broken.is_some() || output.lost.bytes > 0 {
        return None;
    }
    let (Sink::Pipe(sink) | Sink::Fifo { writer: sink, .. }) = &output.sink else {
        return None;
    };
    match sys::splice(source.as_fd(), sink.get_ref().as_fd(), CHUNK) {
        Ok(0) => Some(Ok(Moved::End)),
        Ok(_) => Some(Ok(Moved::All)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            match sys::readable_bytes(source.as_fd()) {
                // Nobody else reads it, so it is the sink.
                Ok(1..) => Some(Ok(Moved::Full)),
                Ok(0) | Err(_) => Some(Err(error)),
            }
        }
        // Not two pipes, or nobody reads the second one: a write says what is to be said of that.
        Err(_) => {
            output.splices = false;
            None
        }
    }
}

fn move_once(mut source: &Descriptor, output: &mut Output) -> io::Result<Moved> {
    if let Some(moved) = move_within(source, output) {
        return moved;
    }
    let mut buffer = [0u8; CHUNK];
    // What is read is gone from the source: in the same step it is written, or on the slate.
    let _step = resume::step();
    let read = match source.read(&mut buffer) {
        Ok(0) => return Ok(Moved::End),
        // The last process has closed its side of the terminal.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(Moved::End),
        Ok(read) => read,
        Err(error) => return Err(error),
    };
    let rest = output.write_now(buffer.get(..read).unwrap_or_default());
    if rest.is_empty() {
        Ok(Moved::All)
    } else {
        output.kept.left(rest);
        Ok(Moved::Left(rest.to_vec()))
    }
}

/// Copies until the end of `source`. A sink that breaks or is full does not stop the reading, but
/// for [`Policy::Block`]: the process must not block or die because its log cannot be written.
pub(super) async fn copy(pump: Pump) {
    let Pump {
        stream,
        source,
        mut output,
        left,
    } = pump;
    if !left.is_empty() {
        output.deliver(left).await;
    }
    loop {
        let moved = source
            .0
            .async_io(Interest::READABLE, |fd| move_once(fd, &mut output))
            .await;
        match moved {
            Ok(Moved::End) => break,
            Ok(Moved::All) => {}
            Ok(Moved::Left(rest)) => output.deliver(rest).await,
            Ok(Moved::Full) => output.await_room(&source.0).await,
            Err(error) => {
                log::warn!("{stream}: reading stopped: {error}");
                break;
            }
        }
        // EPIPE on stdin: the process has closed it or is gone, which is its right.
        if stream == "stdin" && output.broken.is_some() {
            return;
        }
        // One busy stream must not starve the rest of the thread.
        tokio::task::coop::consume_budget().await;
    }
    output.end().await;
}
