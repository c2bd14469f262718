//! criu, which writes a container to disk and makes one from it again, as a worker of ours.
//!
//! ```text
//! holdfast ──socketpair──> criu swrk FD
//!          ── request (DUMP, RESTORE, CHECK …) ──>
//!          <── NOTIFY script, pid [, descriptor] ──     any number of times
//!          ── NOTIFY, success ──>                       criu stands still until then
//!          <── the answer ──
//! ```
//! Messages are those of criu's `rpc.proto` (criu(8), "rpc"). See
//! `docs/0004-criu-by-its-own-protocol.md` for why they are written by hand.

pub(crate) mod log;
pub(crate) mod message;
pub(crate) mod request;
pub(crate) mod session;
pub(crate) mod targets;
