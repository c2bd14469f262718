//! What an operator asks of a node: `why`, `check`, `shims`; and `upgrade`, which follows from the answers.

use std::collections::BTreeSet;
use std::path::Path;

use holdfast_record::ledger::{Ledger, Page, Query, Selector};
use holdfast_record::{ContainerId, Timestamp, why};
use lexopt::{Arg, Parser};

use super::commands::{Ids, pretty, print};
use super::global::{flag, path, text, usage};
use crate::error::{Error, Result};
use crate::shims;
use crate::state::Container;

/// Below it the runtime keeps, for each containerd namespace, what our shims run.
const ROOT: &str = "/run/holdfast";

/// `shims`: those of this node.
pub(super) fn shims(parser: &mut Parser) -> Result<i32> {
    let mut json = false;
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Long("json") => json = flag(parser)?,
            other => return Err(usage(other.unexpected())),
        }
    }
    let shims = shims::find();
    if json {
        let value = serde_json::to_value(&shims).map_err(|source| Error::Json {
            path: "the list of shims".into(),
            source,
        })?;
        return print(&pretty(&value)?);
    }
    print(&shims::table(&shims, Timestamp::now()))
}

/// `upgrade`: moves shims to another program.
pub(super) fn upgrade(parser: &mut Parser) -> Result<i32> {
    let (mut all, mut program, mut words) = (false, None, Vec::new());
    let mut namespace = None;
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Long("all") => all = flag(parser)?,
            Arg::Long("program") => program = Some(path(parser)?),
            Arg::Short('n') | Arg::Long("namespace") => namespace = Some(text(parser)?),
            Arg::Value(value) => {
                let mut ids = Ids::default();
                ids.push(value)?;
                words.append(&mut ids.0);
            }
            other => return Err(usage(other.unexpected())),
        }
    }
    let wanted = shims::Wanted {
        words: &words,
        all,
        namespace: namespace.as_deref(),
    };
    print(&shims::upgrade(&wanted, program.as_deref())?)
}

/// `why`. Exit code 1: there is no record of it.
pub(super) fn why(parser: &mut Parser) -> Result<i32> {
    let mut query = Query::default();
    let mut form = why::Form::List;
    let mut json = false;
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Long("json") => json = flag(parser)?,
            Arg::Long("last") => {
                let count = match parser.optional_value() {
                    None => 1,
                    Some(value) => value
                        .to_str()
                        .and_then(|text| text.parse().ok())
                        .ok_or_else(|| Error::Usage("--last=N wants a number".into()))?,
                };
                query.last = Some(count);
                form = why::Form::Full;
            }
            Arg::Long("since") => {
                let word = text(parser)?;
                let since = why::since(&word, Timestamp::now())
                    .map_err(|error| Error::Usage(error.to_string()))?;
                query.since = Some(since);
            }
            Arg::Short('n') | Arg::Long("namespace") => query.namespace = Some(text(parser)?),
            Arg::Long("node") => {
                if flag(parser)? {
                    form = why::Form::Node;
                }
            }
            Arg::Value(value) => {
                query.who = Some(Selector::new(value.to_string_lossy()));
                form = why::Form::Full;
            }
            other => return Err(usage(other.unexpected())),
        }
    }
    if json {
        form = why::Form::Json;
    }
    query.quiet = matches!(form, why::Form::Full | why::Form::List | why::Form::Node);
    let ledger = Ledger::from_env();
    let page = ledger.read(&query).map_err(|error| Error::Step {
        doing: "read the ledger".into(),
        detail: crate::error::chain(&error),
        source: None,
    })?;
    let answer = why::answer(&page, &query, ledger.dir(), form);
    if let (false, Some(who)) = (json, &query.who) {
        let present = present(Path::new(ROOT), who.as_str(), &namespaces(&query, &page));
        for line in &present {
            print(line)?;
        }
        if answer.found && !present.is_empty() {
            print("\nOf its processes, and of those before it that had its name:\n")?;
        }
    }
    print(answer.text.trim_end())?;
    Ok(i32::from(!answer.found))
}

/// The containerd namespaces in which a container is meant that exists: ids are unique in one only. Empty: any.
fn namespaces(query: &Query, page: &Page) -> BTreeSet<String> {
    let asked = query.namespace.iter().cloned();
    let found = page.records.iter().filter_map(|one| one.namespace.clone());
    asked.chain(found).collect()
}

/// A line for each container `id` whose init process lives, by what the runtime has on disk.
fn present(root: &Path, id: &str, namespaces: &BTreeSet<String>) -> Vec<String> {
    let Ok(id) = ContainerId::new(id) else {
        return Vec::new();
    };
    let mut lines: Vec<String> = std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|folder| {
            let namespace = folder.file_name().into_string().ok()?;
            if !namespaces.is_empty() && !namespaces.contains(&namespace) {
                return None;
            }
            let container = Container::load(&folder.path(), &id).ok()?;
            let pid = container.live_init().ok()?;
            Some(format!(
                "Container {id} exists in the containerd namespace {namespace} and has not ended: it is {}, since {}, as pid {pid}.",
                container.status_alive().name(),
                container.saved.created.short(),
            ))
        })
        .collect();
    lines.sort();
    lines
}

/// `check`. Exit code 0: nothing but notes, 2: warnings, 3: problems.
pub(super) fn check(parser: &mut Parser) -> Result<i32> {
    let mut json = false;
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Long("json") => json = flag(parser)?,
            other => return Err(usage(other.unexpected())),
        }
    }
    let report = holdfast_check::examine(&holdfast_check::Node::this());
    if json {
        print(&pretty(&report.json())?)?;
    } else {
        print(report.text().trim_end())?;
    }
    Ok(report.exit_code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_container_is_not_taken_for_one() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("k8s.io/box")).unwrap();
        let anywhere = BTreeSet::new();
        assert_eq!(present(root.path(), "box", &anywhere), [""; 0]);
        assert_eq!(present(root.path(), "../box", &anywhere), [""; 0]);
    }

    #[test]
    fn a_running_container_is_meant_only_where_its_namesake_ended() {
        let record = |namespace| {
            let reason = holdfast_record::Reason::Exited { code: 0 };
            let namespace = holdfast_record::Namespace::new(namespace).unwrap();
            let kind = holdfast_record::ledger::Kind::Container;
            holdfast_record::ledger::Record::new(kind, &reason, Timestamp::now())
                .of_container(Some(&namespace), &ContainerId::new("box").unwrap())
        };
        let page = Page {
            records: vec![record("k8s.io"), record("moby")],
            damaged: 0,
        };
        let none = Query::default();
        assert_eq!(
            namespaces(&none, &page),
            BTreeSet::from(["k8s.io".into(), "moby".into()])
        );
        assert!(namespaces(&none, &Page::default()).is_empty());
    }
}
