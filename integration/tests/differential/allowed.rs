//! Where ours may differ, and why.

use holdfast_integration::containerd::Version;

use super::side::State;

/// One difference.
#[derive(Debug)]
pub(crate) struct Allowed {
    /// Only there, if named.
    version: Option<Version>,
    /// In these states; none for all.
    states: &'static [State],
    /// Of these calls; none for all.
    calls: &'static [&'static str],
    /// `answer`, `state after` or `events`.
    what: &'static str,
    /// What theirs contains.
    theirs: &'static str,
    /// What ours contains.
    ours: &'static str,
    /// Seen in every run; else it depends on the order of events.
    always: bool,
    /// The reason.
    pub(crate) why: &'static str,
}

impl Allowed {
    fn on(&self, version: Version) -> bool {
        self.version.is_none_or(|only| only == version)
    }

    /// Whether something is wrong when it is not seen.
    pub(crate) fn must_be_seen(&self, version: Version) -> bool {
        self.always && self.on(version)
    }

    pub(crate) fn applies(
        &self,
        version: Version,
        state: State,
        call: &str,
        what: &str,
        theirs: &str,
        ours: &str,
    ) -> bool {
        self.on(version)
            && (self.states.is_empty() || self.states.contains(&state))
            && (self.calls.is_empty() || self.calls.contains(&call))
            && self.what == what
            && theirs.contains(self.theirs)
            && ours.contains(self.ours)
    }
}

pub(crate) const ALLOWED: &[Allowed] = &[
    Allowed {
        version: None,
        states: &[],
        calls: &["Create"],
        what: "answer",
        theirs: "2: OCI runtime create failed: runc create failed: container with given ID already exists",
        ours: "6: id ID: already exists",
        always: true,
        why: "theirs leaves it to the runtime to find that the id is taken, and has given up the \
              first container's stdio and mounts by then",
    },
    Allowed {
        version: None,
        states: &[State::FailedCreate],
        calls: &["Create"],
        what: "answer",
        theirs: "unable to start container process: exec: \"nosuchprogram\": executable file not found in $PATH",
        ours: "2: OCI runtime create failed: exec: \"nosuchprogram\": executable file not found in $PATH",
        always: true,
        why: "the runtime's words, of which clients match the last part only",
    },
    Allowed {
        version: None,
        states: &[State::Created],
        calls: &["Delete"],
        what: "answer",
        theirs: "ok pid INIT exit 0 at year 1",
        ours: "ok pid INIT exit 137 at its time",
        always: true,
        why: "what was never started is killed by its delete: that is how it ended, and when",
    },
    Allowed {
        version: None,
        states: &[],
        calls: &[],
        what: "events",
        theirs: "/tasks/delete exited_at its time pid",
        ours: "/tasks/exit exit_status 137 exited_at its time id \"ID\" pid",
        always: true,
        why: "of a container that was never started the exit is told before the delete, and the \
              delete has its status",
    },
    Allowed {
        version: None,
        states: &[State::FailedStart],
        calls: &[],
        what: "answer",
        theirs: "exit 1 at its time",
        ours: "exit 127 at its time",
        always: true,
        why: "a program that cannot be executed fails ours' Start, and ends as shells have it; theirs \
              answers that it runs, and that it has ended by itself",
    },
    Allowed {
        version: None,
        states: &[State::FailedStart],
        calls: &[],
        what: "events",
        theirs: "/tasks/start pid INIT; /tasks/exit exit_status 1 ",
        ours: "/tasks/exit exit_status 127 ",
        always: true,
        why: "the same: what has never run is not told as started",
    },
    Allowed {
        version: None,
        states: &[State::Stored],
        calls: &["Create"],
        what: "answer",
        theirs: "ok pid NEW",
        ours: "6: id ID: already exists",
        always: true,
        why: "the runtime does not know the id yet, so theirs forgets the first container for the \
              second",
    },
    Allowed {
        version: None,
        states: &[State::Stored],
        calls: &["Create"],
        what: "events",
        theirs: "/tasks/create bundle \"BUNDLE\" io {} pid NEW",
        ours: "/tasks/delete exited_at its time",
        always: true,
        why: "the same",
    },
    Allowed {
        version: None,
        states: &[State::Stored],
        calls: &["Pids"],
        what: "answer",
        theirs: "2: runc did not terminate successfully: exit status 1: container does not exist",
        ours: "ok ",
        always: true,
        why: "there are none, which is no failure",
    },
    Allowed {
        version: None,
        states: &[State::Stored],
        calls: &["Update"],
        what: "answer",
        theirs: "2: runc did not terminate successfully: exit status 1: container does not exist",
        ours: "2: cannot update a container that is to be restored by its start",
        always: true,
        why: "it says why",
    },
    Allowed {
        version: None,
        states: &[State::Stored],
        calls: &["Start"],
        what: "answer",
        theirs: "2: OCI runtime restore failed: ",
        ours: "2: OCI runtime restore failed: failed to ",
        always: true,
        why: "the runtime's words",
    },
    Allowed {
        version: None,
        states: &[],
        calls: &[],
        what: "events",
        theirs: "/tasks/oom",
        ours: "/tasks/delete",
        always: false,
        why: "the kernel wakes the listeners of a v1 cgroup that is removed, too: nothing was out \
              of memory",
    },
    Allowed {
        version: None,
        states: &[State::Running, State::Paused],
        calls: &["Checkpoint"],
        what: "answer",
        theirs: "path= BUNDLE/criu-dump.log",
        ours: "2: OCI runtime checkpoint failed: ",
        always: true,
        why: "neither has criu here, and each says so",
    },
    Allowed {
        version: None,
        states: &[State::Stopped, State::FailedStart],
        calls: &["Pids"],
        what: "answer",
        theirs: "ok ",
        ours: "ok INIT",
        always: true,
        why: "containerd 2.1 takes a shim without pids for leaked when it comes back, and deletes \
              it with the exit it has not heard of",
    },
    Allowed {
        version: None,
        states: &[State::ExecUnknown, State::ExecDeleted],
        calls: &["CloseIO"],
        what: "answer",
        theirs: "2: process does not exist exec: not found",
        ours: "5: process does not exist exec: not found",
        always: true,
        why: "the code says what the text says",
    },
];
