//! The manual page `holdfast-reasons(7)`, made from the catalogue.

use super::CATALOGUE;

/// The page as roff with the `man(7)` macros. `packaging/man/holdfast-reasons.7` is this text.
#[must_use]
pub fn man_page() -> String {
    let mut page = String::from(HEAD);
    let mut group = None;
    for entry in CATALOGUE {
        if group != Some(entry.group) {
            group = Some(entry.group);
            page.push_str(&format!(".SS {}\n", escape(entry.group.title())));
        }
        page.push_str(&format!(
            ".TP\n.B {} \\- {}\n{}\n.IP\n{}\n.IP\nMESSAGE_ID={}\n",
            entry.code,
            escape(entry.title),
            escape(entry.means),
            escape(entry.advice),
            entry.message_id
        ));
    }
    page.push_str(TAIL);
    page
}

/// Keeps roff from reading text as commands or as typographic marks.
fn escape(text: &str) -> String {
    let text = text
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq");
    if text.starts_with('.') {
        format!("\\&{text}")
    } else {
        text
    }
}

const HEAD: &str = r#".\" Made from the catalogue in init/record/src/reason/catalogue.rs: the test of that crate writes it under UPDATE=1 and compares it otherwise.
.TH HOLDFAST\-REASONS 7 "" "Holdfast" "Holdfast"
.SH NAME
holdfast\-reasons \- why containers end, and what to do about it
.SH DESCRIPTION
Every end of a container, of an exec process, of a hook, of the runtime and of the shim gets one record in the ledger
.RI ( /var/lib/holdfast/ledger ).
The record names one of the reasons below by a code that never changes its meaning.
.B holdfast why
.I ID
shows it with its evidence.
Where systemd's journal runs, the record is there as well, with the MESSAGE_ID of its reason:
.PP
.RS
.B journalctl MESSAGE_ID=\fIid\fP
.RE
.SH REASONS
"#;

const TAIL: &str = r#".SH SEE ALSO
.BR holdfast (8),
.BR journalctl (1),
.BR signal (7)
"#;
