//! What is the same for every occurrence of a reason: code, title, meaning, advice and MESSAGE_ID.
//!
//! Codes and message ids are promises: they are never changed and never given to another reason.
//! A new reason takes the next free number of its group and a random id (`uuidgen | tr -d -`).

use super::{Entry, Group, MessageId};

pub(super) static EXITED: Entry = Entry {
    code: "HF101",
    group: Group::Ended,
    title: "exited by itself",
    means: "The process called exit with a code of its own choosing. Code 0 is success by convention; what any other code means, the program decides.",
    advice: "If the code is not 0, read the container's own log: the cause is inside the program.",
    message_id: MessageId(0x55a185dc5d82197ee2c1146126eb12a0),
};

pub(super) static FAULTED: Entry = Entry {
    code: "HF102",
    group: Group::Ended,
    title: "ended by its own fault",
    means: "The process was ended by the signal of a fault, as a rule for something it did itself: an invalid memory access (SIGSEGV, SIGBUS), an invalid instruction (SIGILL), abort() (SIGABRT), an arithmetic fault (SIGFPE) or a forbidden system call (SIGSYS). No other process on the node is recorded as the sender; where signals are not traced, none could be (holdfast check says whether they are).",
    advice: "Read the container's own log and, if one was written, the core dump. For SIGSYS look at the seccomp profile.",
    message_id: MessageId(0xac10a65d8f8811d0a51d6f60d2a1fd43),
};

pub(super) static ENDED_WITH_CONTAINER: Entry = Entry {
    code: "HF103",
    group: Group::Ended,
    title: "ended because its container's init process ended",
    means: "An exec process lives in the container's pid namespace. When the container's init process ends, the kernel kills every other process in that namespace with SIGKILL; where the container has no pid namespace of its own, the shim does so. The exec process itself did nothing wrong.",
    advice: "Ask why the container ended: holdfast why CONTAINER.",
    message_id: MessageId(0x1ac23372fcd714dad763283dfd007648),
};

pub(super) static OUTLIVED_CONTAINER: Entry = Entry {
    code: "HF104",
    group: Group::Ended,
    title: "had not ended when its container's end was told",
    means: "The container's init process has ended, and an exec process of it has not: it cannot be killed (it sleeps in the kernel), it lives in another pid namespace, or the runtime that starts it does not answer. Its exit comes before that of init as a rule; for this one it was not waited any longer.",
    advice: "Look at the process that is named: what it sleeps in is what holds it. Its own exit is told when it ends, or as 255 when the container is deleted first.",
    message_id: MessageId(0x71b98b143b9e4a1fe29cf08fdfef38ac),
};

pub(super) static KILLED_BY_REQUEST: Entry = Entry {
    code: "HF111",
    group: Group::Request,
    title: "ended by request",
    means: "Somebody asked for the end through containerd (kubelet, docker, ctr, nerdctl or crictl), and the process ended after the requested signal was sent.",
    advice: "Look at who asked: the kubelet's and containerd's logs at the time shown. After a SIGTERM without an end within the grace period, SIGKILL follows: raise terminationGracePeriodSeconds if the program needs longer.",
    message_id: MessageId(0xd9fd656cfc7c4ca709fe3d59717c8a59),
};

pub(super) static EXITED_ON_REQUEST: Entry = Entry {
    code: "HF112",
    group: Group::Request,
    title: "exited after it was asked to end",
    means: "Somebody asked for the end through containerd (kubelet, docker, ctr, nerdctl or crictl) by a signal that a program can handle, as a rule SIGTERM, and the process exited with a code of its own after that.",
    advice: "Nothing, if the container was to be stopped: who asked is in the kubelet's and containerd's logs at the time shown. What a code other than 0 means, the container's own log says.",
    message_id: MessageId(0xad19f603cdf6c98c28bea86c89e34e99),
};

pub(super) static OOM_KILLED: Entry = Entry {
    code: "HF121",
    group: Group::Oom,
    title: "killed by the kernel for want of memory",
    means: "The cgroup of the container, or one above it, or the whole node had no memory left, and the kernel's OOM killer chose the container's init process.",
    advice: "Raise the memory limit or make the program use less. If the limit named is not the container's own, the pod or the node ran out, not this container.",
    message_id: MessageId(0x397067fd6a1420d5ced34eb2f6776c59),
};

pub(super) static OOM_KILLED_CHILD: Entry = Entry {
    code: "HF122",
    group: Group::Oom,
    title: "ended after one of its processes was killed for want of memory",
    means: "The kernel's OOM killer chose another process in the container than its init process, and the container ended after that, usually because its init process noticed and gave up.",
    advice: "As for HF121. Look at the killed process that is named: it is the one that used the memory.",
    message_id: MessageId(0x5366bc26a95af71a0a60f54e04c84ca2),
};

pub(super) static SIGNAL_FROM_OUTSIDE: Entry = Entry {
    code: "HF131",
    group: Group::Outside,
    title: "ended by a signal that nobody asked containerd for",
    means: "A signal ended the process, no request for it passed through containerd, and the kernel reports no lack of memory. Another process on the node, or one inside the container, sent it.",
    advice: "If the sender is named, ask its owner: pid, command, parent and cgroup are in the evidence. If not, the evidence says why the sender is unknown and what to switch on to see it next time.",
    message_id: MessageId(0xcea35560bc801316c29c042af9563602),
};

pub(super) static HOOK_FAILED: Entry = Entry {
    code: "HF141",
    group: Group::Hook,
    title: "an OCI hook failed",
    means: "A hook of the container's configuration could not be started, ended with a code other than 0, or was ended by a signal. Its output is in the evidence.",
    advice: "Read the hook's output. Hooks come from the container engine, from CDI or from GPU tooling, rarely from the image.",
    message_id: MessageId(0x71e00a89155f1a7d11f6b4a77c200f01),
};

pub(super) static HOOK_TIMED_OUT: Entry = Entry {
    code: "HF142",
    group: Group::Hook,
    title: "an OCI hook did not finish in time",
    means: "A hook was still running at its deadline. It and its process group were killed, so that the container did not hang with it.",
    advice: "The evidence says what the hook was waiting for (state and kernel function). Give the hook a longer timeout in the configuration only if it makes progress.",
    message_id: MessageId(0x40a8228f2200d45250ac5d414f6045cd),
};

pub(super) static CREATE_STEP_FAILED: Entry = Entry {
    code: "HF151",
    group: Group::Create,
    title: "the container could not be created",
    means: "A step of the creation failed; which one, on what, and with which answer of the kernel is in the evidence. The user's program has not run.",
    advice: "Correct what the step names (a path, a limit, a missing feature). holdfast check looks for the usual causes on the node.",
    message_id: MessageId(0xe8cfa61738298a55c398a76ebb47115b),
};

pub(super) static CREATE_TIMED_OUT: Entry = Entry {
    code: "HF152",
    group: Group::Create,
    title: "the creation of the container did not finish in time",
    means: "A step of the creation was still waiting at its deadline. Everything that had been created was removed.",
    advice: "The evidence names the step, the process, its state and the kernel function it waits in. State D points to storage or a driver.",
    message_id: MessageId(0xcfdbebacfca1f050e9b0b2db2662973d),
};

pub(super) static START_FAILED: Entry = Entry {
    code: "HF153",
    group: Group::Create,
    title: "the container's program could not be started",
    means: "The container was ready, but the kernel refused to run the program, or a step right before it failed: the file does not exist, is not executable, or is for another architecture.",
    advice: "Check the command and its interpreter inside the image. The text in the evidence is the answer of the kernel.",
    message_id: MessageId(0x9aa316937dd6f4b52edb0068840fdc7f),
};

pub(super) static EXEC_FAILED: Entry = Entry {
    code: "HF154",
    group: Group::Create,
    title: "an exec process could not be started",
    means: "The container runs, but the additional process could not be put into it or its program could not be run. The container is not affected.",
    advice: "Check the command inside the image, and that the container was still running at that time.",
    message_id: MessageId(0x70cfb05ff9ee64b49fd751e22f37c537),
};

pub(super) static EXEC_TIMED_OUT: Entry = Entry {
    code: "HF155",
    group: Group::Create,
    title: "the start of an exec process did not finish in time",
    means: "A step of the start of an exec process was still waiting at its deadline. The process was killed; the container is not affected.",
    advice: "The evidence names the step, the process, its state and the kernel function it waits in.",
    message_id: MessageId(0xb2f5342d3991c2dec08927a842fd77f3),
};

pub(super) static RUNTIME_FAILED: Entry = Entry {
    code: "HF161",
    group: Group::Runtime,
    title: "the OCI runtime failed",
    means: "The runtime program that the shim started for an operation reported an error or ended with a code other than 0.",
    advice: "Read the text in the evidence; it is what the runtime reported.",
    message_id: MessageId(0x4ef3fb0773624361f81539f4322d38d2),
};

pub(super) static RUNTIME_KILLED: Entry = Entry {
    code: "HF162",
    group: Group::Runtime,
    title: "the OCI runtime was ended by a signal",
    means: "The runtime program that the shim started for an operation was ended by a signal before it reported a result. What it had created was removed.",
    advice: "SIGKILL points to lack of memory in the pod's cgroup or to a person; other signals to a fault of the runtime, which we would like to hear of.",
    message_id: MessageId(0x540ca88e95511462b701ba4e521a9c18),
};

pub(super) static RUNTIME_PANICKED: Entry = Entry {
    code: "HF163",
    group: Group::Runtime,
    title: "the OCI runtime had an internal error",
    means: "The runtime program ran into a state that its authors thought impossible. The operation failed; other containers are not affected.",
    advice: "Report it with the message and the backtrace in the evidence.",
    message_id: MessageId(0x937b023838727efca557d691c8fa6386),
};

pub(super) static CLEANUP_INCOMPLETE: Entry = Entry {
    code: "HF164",
    group: Group::Runtime,
    title: "something of a deleted container could not be removed",
    means: "The container is gone, but a mount, a cgroup, a process or a file of it is still there. What, and who holds it where that is known, is in the evidence.",
    advice: "Deal with the holder that is named, then remove the rest by hand; holdfast check lists what is left on the node.",
    message_id: MessageId(0xec2953e5f907f24eb244d11b919c9e8c),
};

pub(super) static SHIM_FINISHED: Entry = Entry {
    code: "HF170",
    group: Group::Shim,
    title: "the shim ended because its work was done",
    means: "containerd asked the shim to shut down and no container was left in it.",
    advice: "Nothing is to be done.",
    message_id: MessageId(0xc1dc3efc31c537c19ad84dec4fba724d),
};

pub(super) static SHIM_PANICKED: Entry = Entry {
    code: "HF171",
    group: Group::Shim,
    title: "the shim had an internal error",
    means: "A request or a container's task in the shim ran into a state that its authors thought impossible. Other containers are not affected.",
    advice: "Report it with the message and the backtrace in the evidence.",
    message_id: MessageId(0xb98cf7f2669b78b4d86e7f9e2a15d720),
};

pub(super) static SHIM_CRASHED: Entry = Entry {
    code: "HF172",
    group: Group::Shim,
    title: "the shim crashed and went on in a new image",
    means: "The shim received a fatal signal, for something it did itself or from another process, and executed itself again: same pid, same containers, sockets and streams. Nothing ended.",
    advice: "If a sender is named, ask its owner. If not, report it with the backtrace in the evidence.",
    message_id: MessageId(0x0fc4b0bff6427a30813eb64ebfe4efbb),
};

pub(super) static SHIM_GONE: Entry = Entry {
    code: "HF173",
    group: Group::Shim,
    title: "the shim was killed, or could not go on",
    means: "The shim was gone, and containerd asked for a clean-up. If the container had ended before, its true exit status is recorded; otherwise the clean-up ended it, and the status (137) is that of the clean-up.",
    advice: "If the sender is named, ask its owner; programs that kill by name are the usual ones. For a lack of memory the evidence names the cgroup. If neither is known, the evidence says why, and what to switch on to see it next time.",
    message_id: MessageId(0x66ae1ae25afa2639b35b16465d02fec3),
};

pub(super) static SHIM_STALLED: Entry = Entry {
    code: "HF174",
    group: Group::Shim,
    title: "the shim stopped answering and went on in a new image",
    means: "The shim's event loop made no progress for longer than its watchdog allows, and the shim executed itself again: same pid, same containers, sockets and streams. Nothing ended.",
    advice: "The evidence holds the stacks at that time. A blocked disk or a stopped process (SIGSTOP) are the usual causes.",
    message_id: MessageId(0xed0dc80353d12314540342cc1fdf3906),
};

pub(super) static SHIM_KILLED: Entry = Entry {
    code: "HF175",
    group: Group::Shim,
    title: "the shim was killed, and its containers went on",
    means: "The shim was ended by SIGKILL, or in a way of its own that it could not prevent. Its keeper has begun it anew; containers, their output and containerd's connections are as before. A change that was just being made may have been answered with an error.",
    advice: "If the sender is named, ask its owner; programs that kill by name are the usual ones. For a lack of memory the evidence names the cgroup: give the shim's at least 16 MiB.",
    message_id: MessageId(0x6bf052f268ca4cb1a81c92dfc5c3d687),
};

pub(super) static SHIM_STOPPED: Entry = Entry {
    code: "HF176",
    group: Group::Shim,
    title: "the shim was stopped, and its keeper let it go on",
    means: "Somebody stopped the shim's process (SIGSTOP). It stood still until its keeper continued it; its containers ran on, but containerd had no answers meanwhile.",
    advice: "If the sender is named, ask its owner. To leave a shim stopped, for example under a debugger that does not trace it, start it with HOLDFAST_DEADLINE_STOPPED=0.",
    message_id: MessageId(0xead473af39c81b3b3f170e1aa5d0dc9f),
};

pub(super) static GPU_STAGE_FAILED: Entry = Entry {
    code: "HF181",
    group: Group::Gpu,
    title: "the GPU could not be given to the container",
    means: "The container asked for a GPU, and a step of finding or adding devices and driver files failed. The user's program has not run.",
    advice: "Read the text in the evidence; nvidia-smi on the node tells whether the driver itself works.",
    message_id: MessageId(0xf4bdeb2a27f8e2aab2735f1e4eb34543),
};

pub(super) static GPU_STAGE_TIMED_OUT: Entry = Entry {
    code: "HF182",
    group: Group::Gpu,
    title: "giving the GPU to the container did not finish in time",
    means: "A program of the GPU stage was still running at its deadline and was killed.",
    advice: "State D in the evidence points to the driver: look for Xid messages in the kernel's log. A node without persistence mode initialises its GPUs slowly.",
    message_id: MessageId(0x42c6765d7a43b7902e047544fdde8932),
};

pub(super) static NODE_SHUTDOWN: Entry = Entry {
    code: "HF191",
    group: Group::Node,
    title: "ended because the node was shut down",
    means: "The system manager was stopping the node when the process ended.",
    advice: "Nothing is to be done for the container; ask why the node was shut down.",
    message_id: MessageId(0x15f5f81c4ec4b6f7c3a96eb0f9ca5101),
};

pub(super) static UNKNOWN: Entry = Entry {
    code: "HF199",
    group: Group::Unknown,
    title: "ended for a reason that could not be found",
    means: "None of the other reasons could be proven. What was looked at is listed in the evidence.",
    advice: "Look at the places that are listed; if one of them holds the answer after all, this is a fault of Holdfast that we would like to hear of.",
    message_id: MessageId(0xa970fda6490991b4ee07028a352925a0),
};

/// Every reason there is, in the order of its code.
pub static CATALOGUE: [&Entry; 31] = [
    &EXITED,
    &FAULTED,
    &ENDED_WITH_CONTAINER,
    &OUTLIVED_CONTAINER,
    &KILLED_BY_REQUEST,
    &EXITED_ON_REQUEST,
    &OOM_KILLED,
    &OOM_KILLED_CHILD,
    &SIGNAL_FROM_OUTSIDE,
    &HOOK_FAILED,
    &HOOK_TIMED_OUT,
    &CREATE_STEP_FAILED,
    &CREATE_TIMED_OUT,
    &START_FAILED,
    &EXEC_FAILED,
    &EXEC_TIMED_OUT,
    &RUNTIME_FAILED,
    &RUNTIME_KILLED,
    &RUNTIME_PANICKED,
    &CLEANUP_INCOMPLETE,
    &SHIM_FINISHED,
    &SHIM_PANICKED,
    &SHIM_CRASHED,
    &SHIM_GONE,
    &SHIM_STALLED,
    &SHIM_KILLED,
    &SHIM_STOPPED,
    &GPU_STAGE_FAILED,
    &GPU_STAGE_TIMED_OUT,
    &NODE_SHUTDOWN,
    &UNKNOWN,
];
