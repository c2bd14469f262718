//! `list`: all containers below the root.

use holdfast_record::ContainerId;
use std::fmt::Write as _;

use super::Context;
use super::state::Document;
use crate::error::{Doing, Error, Result};

/// How `list` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Columns with a heading.
    Table,
    /// A JSON array; `null` when there is none, as runc prints it.
    Json,
    /// Ids only.
    Quiet,
}

/// Lists containers. One that cannot be read is logged and left out.
///
/// # Errors
/// When the root cannot be read.
pub fn list(context: &Context, format: Format) -> Result<String> {
    let mut documents = Vec::new();
    let entries = match std::fs::read_dir(&context.root) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(source) => {
            return Err(Error::Io {
                doing: format!("list {}", context.root.display()),
                source,
            });
        }
    };
    for entry in entries.into_iter().flatten() {
        let entry = entry.doing(|| format!("list {}", context.root.display()))?;
        let Some(id) = entry
            .file_name()
            .to_str()
            .filter(|name| !name.starts_with('.'))
            .and_then(|name| ContainerId::new(name).ok())
        else {
            continue;
        };
        match context.container(&id) {
            Ok(container) => documents.push(Document::of(&container)),
            // Deleted meanwhile, or a create that is only beginning.
            Err(Error::NoContainer { .. }) => {}
            Err(error) => log::warn!("list: {id}: {}", crate::error::chain(&error)),
        }
    }
    documents.sort_by_key(|document| document.columns());
    render(&documents, format)
}

fn render(documents: &[Document], format: Format) -> Result<String> {
    match format {
        Format::Json if documents.is_empty() => Ok("null".into()),
        Format::Json => serde_json::to_string(documents).map_err(|source| Error::Json {
            path: "the list to print".into(),
            source,
        }),
        Format::Quiet => Ok(documents
            .iter()
            .map(|document| document.columns()[0].clone())
            .collect::<Vec<_>>()
            .join("\n")),
        Format::Table => {
            let heading = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from);
            let mut rows = vec![heading];
            rows.extend(documents.iter().map(Document::columns));
            Ok(table(&rows))
        }
    }
}

/// Columns as wide as their widest cell and three spaces, at least 12: scripts cut runc's table
/// by position.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (cell.len() + 3).max(12).max(*width);
        }
    }
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        if at > 0 {
            text.push('\n');
        }
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            if column + 1 == N {
                text.push_str(cell);
            } else {
                // Writing to a String cannot fail.
                let _ = write!(text, "{cell:width$}");
            }
        }
    }
    text
}
