//! Writing a plan: the parent's side.

use holdfast_plan::{HEADER, Malformed, Sink, Step, header};

struct Bytes<'a>(&'a mut Vec<u8>);

impl Sink for Bytes<'_> {
    fn append(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

/// Collects steps, and for each the words in which its failure is told to a person.
#[derive(Debug, Default)]
pub struct PlanBuilder {
    body: Vec<u8>,
    labels: Vec<String>,
    pointers: usize,
}

/// A finished plan: the bytes for `holdfast-init` and the labels that stay behind.
#[derive(Debug, Clone)]
pub struct PlanImage {
    /// What goes into the plan's memfd.
    pub bytes: Vec<u8>,
    /// One label per step, e.g. `mount proc on /proc`.
    pub labels: Vec<String>,
}

impl PlanBuilder {
    /// An empty plan.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a step. `label` completes the sentence "failed to …".
    pub fn push(&mut self, step: Step<'_>, label: impl Into<String>) {
        if let Step::Exec { args, env } = &step {
            self.pointers += args.len() + env.len() + 2;
        }
        let at = self.body.len();
        self.body.extend_from_slice(&[0; 8]);
        let tag = step.encode(&mut Bytes(&mut self.body));
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a step is bounded by config.json, far below 4 GiB"
        )]
        let len = (self.body.len() - at - 8) as u32;
        self.body[at..at + 4].copy_from_slice(&tag.to_le_bytes());
        self.body[at + 4..at + 8].copy_from_slice(&len.to_le_bytes());
        self.labels.push(label.into());
    }

    /// Number of steps so far.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no step yet.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Finishes the plan.
    ///
    /// # Errors
    /// [`Malformed`] when the plan would not fit into 32-bit offsets.
    pub fn finish(self) -> Result<PlanImage, Malformed> {
        let scratch = u32::try_from(HEADER + self.body.len()).map_err(|_| Malformed)?;
        let steps = u32::try_from(self.labels.len()).map_err(|_| Malformed)?;
        let room = self.pointers * size_of::<usize>();
        let mut bytes = Vec::with_capacity(HEADER + self.body.len() + room);
        bytes.extend_from_slice(&header(steps, scratch));
        bytes.extend_from_slice(&self.body);
        bytes.resize(bytes.len() + room, 0);
        Ok(PlanImage {
            bytes,
            labels: self.labels,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_plan::{List, Plan, Point, TargetKind, Words};
    use proptest::prelude::*;

    #[test]
    fn a_plan_reads_back_as_it_was_written() {
        let groups = [7u32, 8, 9].map(u32::to_le_bytes).concat();
        let steps = [
            Step::Join { fd: -1, flags: 3 },
            Step::Await {
                point: Point::Hooks,
                announce: true,
                wait: true,
            },
            Step::Hostname { name: c"" },
            Step::WriteProc {
                path: c"sys/net/ipv4/ip_forward",
                value: b"1",
            },
            Step::MountTree {
                fd: 9,
                target: c"/etc/hosts",
                kind: TargetKind::File,
                nofollow: true,
                attr_set: 1,
                attr_clr: 2,
                cut: 5,
                propagation: 3,
                rec_attr_set: 4,
                rec_attr_clr: u64::MAX,
            },
            Step::Identity {
                uid: 1,
                gid: 2,
                groups: Words::from_bytes(&groups).unwrap(),
                set_groups: true,
                umask: 0o22,
            },
            Step::Exec {
                args: List::from_bytes(b"sh\0-c\0\0", 3).unwrap(),
                env: List::from_bytes(b"", 0).unwrap(),
            },
        ];
        let mut builder = PlanBuilder::new();
        for step in steps {
            builder.push(step, "x");
        }
        let image = builder.finish().unwrap();
        let plan = Plan::parse(&image.bytes).unwrap();
        let read: Vec<_> = plan.steps().map(Result::unwrap).collect();
        assert_eq!(read, steps);
        assert_eq!(image.bytes.len() - plan.scratch_offset(), (3 + 2) * 8);
        assert_eq!(plan.scratch_offset() % 8, 0);
    }

    #[test]
    fn a_plan_cut_anywhere_is_refused_or_shorter_but_never_misread() {
        let mut builder = PlanBuilder::new();
        builder.push(Step::Hostname { name: c"holdfast" }, "x");
        builder.push(Step::NewSession {}, "y");
        let image = builder.finish().unwrap();
        for cut in 0..image.bytes.len() {
            let short = &image.bytes[..cut];
            assert!(Plan::parse(short).is_err(), "cut at {cut} was accepted");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            if let Ok(plan) = Plan::parse(&bytes) {
                for _ in plan.steps() {}
            }
        }

        #[test]
        fn damaged_plans_do_not_make_the_reader_panic(at in 0usize..200, value in any::<u8>()) {
            let mut builder = PlanBuilder::new();
            builder.push(Step::Hostname { name: c"holdfast" }, "x");
            builder.push(Step::Exec {
                args: List::from_bytes(b"a\0b\0", 2).unwrap(),
                env: List::from_bytes(b"c=d\0", 1).unwrap(),
            }, "y");
            let mut bytes = builder.finish().unwrap().bytes;
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(plan) = Plan::parse(&bytes) {
                for step in plan.steps().flatten() {
                    if let Step::Exec { args, env } = step {
                        prop_assert_eq!(args.iter().count(), args.len());
                        prop_assert_eq!(env.iter().count(), env.len());
                    }
                }
            }
        }
    }
}
