//! Manual pages from the documentation: one text for both.
//!
//! What is understood is what `docs/` uses: headings, paragraphs, lists, tables, code blocks, emphasis, code and links. Output: man(7).

use std::fmt::Write as _;

/// A manual page.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    pub name: &'a str,
    pub section: u8,
    /// One line.
    pub about: &'a str,
    pub version: &'a str,
    /// Seconds since 1970.
    pub date: u64,
    /// Markdown; each becomes a part of the page with the given heading.
    pub parts: &'a [(&'a str, &'a str)],
    /// Other pages: name and section.
    pub see_also: &'a [(&'a str, u8)],
}

impl Page<'_> {
    /// The page's source.
    #[must_use]
    pub fn roff(&self) -> String {
        let mut out = String::from("'\\\" t\n");
        let (name, section) = (self.name, self.section);
        let (year, month, day) = civil(self.date / 86400);
        let _ = writeln!(
            out,
            ".TH {} {section} {year:04}-{month:02}-{day:02} \"Bulkhead {}\" \"Bulkhead\"\n.nh\n.SH NAME\n{} \\- {}",
            name.to_uppercase(),
            self.version,
            escape(name),
            escape(self.about)
        );
        for (heading, text) in self.parts {
            let _ = writeln!(out, ".SH {}", escape(&heading.to_uppercase()));
            body(text, &mut out);
        }
        out.push_str(".SH SEE ALSO\n");
        let others: Vec<String> =
            self.see_also.iter().map(|(name, section)| format!("\\fB{}\\fP({section})", escape(name))).collect();
        let _ = writeln!(out, "{}", others.join(", "));
        out
    }
}

/// Year, month and day of a day since 1970 (H. Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let of_era = z % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

/// Markdown as man(7). The document's title is left out.
fn body(text: &str, out: &mut String) {
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(heading) = line.strip_prefix('#') {
            let depth = heading.chars().take_while(|c| *c == '#').count();
            if depth > 0 {
                let _ = writeln!(out, ".SS {}", inline(heading.trim_start_matches('#').trim()));
            }
        } else if line.starts_with("```") {
            out.push_str(".PP\n.RS 4\n.EX\n");
            for code in lines.by_ref().take_while(|l| !l.starts_with("```")) {
                let _ = writeln!(out, "{}", protect(&escape(code)));
            }
            out.push_str(".EE\n.RE\n");
        } else if line.starts_with('|') {
            let mut rows = vec![line];
            while let Some(row) = lines.next_if(|l| l.starts_with('|')) {
                rows.push(row);
            }
            table(&rows, out);
        } else if let Some(item) = line.strip_prefix("- ") {
            let mut item = item.to_owned();
            while let Some(more) = lines.next_if(|l| l.starts_with("  ") && !l.trim().is_empty()) {
                item = format!("{item} {}", more.trim());
            }
            let _ = writeln!(out, ".IP \\(bu 2\n{}", protect(&inline(&item)));
        } else if !line.trim().is_empty() {
            let mut paragraph = line.trim().to_owned();
            while let Some(more) = lines.next_if(|l| !l.trim().is_empty() && !l.starts_with(['#', '|', '`', '-'])) {
                paragraph = format!("{paragraph} {}", more.trim());
            }
            let _ = writeln!(out, ".PP\n{}", protect(&inline(&paragraph)));
        }
    }
}

/// A table: an item for each row, named by its first cell; with what the head says about the other cells.
fn table(rows: &[&str], out: &mut String) {
    let head = cells(rows[0]);
    for row in rows.iter().skip(2) {
        let cells = cells(row);
        let Some((first, rest)) = cells.split_first() else { continue };
        let _ = writeln!(out, ".TP\n{}", protect(&inline(first)));
        let last = rest.len().saturating_sub(1);
        let mut said = Vec::new();
        for (n, cell) in rest.iter().enumerate() {
            // The last column is the text itself; the others are facts about it.
            if n == last {
                said.push(inline(cell));
            } else if !cell.is_empty() {
                said.push(format!("{}: {}.", inline(head.get(n + 1).map_or("", String::as_str)), inline(cell)));
            }
        }
        let _ = writeln!(out, "{}", protect(&said.join(" ")));
    }
}

/// The cells of a table's row; a bar in one is written `\|`.
fn cells(row: &str) -> Vec<String> {
    let row = row.trim().trim_start_matches('|');
    let row = row.strip_suffix('|').unwrap_or(row).replace("\\|", "\u{1}");
    row.split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect()
}

/// Code, emphasis and links within a line.
fn inline(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let (piece, length) = if c == '`'
            && let Some(end) = after.find('`')
        {
            (format!("\\fB{}\\fP", escape(&after[..end])), end + 2)
        } else if let Some(strong) = rest.strip_prefix("**")
            && let Some(end) = strong.find("**")
        {
            (format!("\\fB{}\\fP", escape(&strong[..end])), end + 4)
        } else if c == '['
            && let Some((label, target)) = after.split_once("](")
            && let Some(end) = target.find(')')
            && !label.contains(']')
        {
            // Another page is named by its label; elsewhere, the address is what helps.
            let address = &target[..end];
            let shown = inline(label);
            let shown = if address.contains("://") { format!("{shown} <{}>", escape(address)) } else { shown };
            (shown, 1 + label.len() + 2 + end + 1)
        } else {
            (escape(&c.to_string()), c.len_utf8())
        };
        out.push_str(&piece);
        rest = &rest[length..];
    }
    out
}

/// Characters that mean something to roff.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            '`' => out.push_str("\\(ga"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            c if c.is_ascii() => out.push(c),
            c => {
                let _ = write!(out, "\\[u{:04X}]", c as u32);
            }
        }
    }
    out
}

/// A line that would be taken for a request.
fn protect(line: &str) -> String {
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(markdown: &str) -> String {
        let mut out = String::new();
        body(markdown, &mut out);
        out
    }

    #[test]
    fn what_the_documentation_uses() {
        assert_eq!(
            of("# Title\n\nSome `code-x`, **bold**\nand [a page](x.md).\n"),
            ".PP\nSome \\fBcode\\-x\\fP, \\fBbold\\fP and a page.\n"
        );
        assert_eq!(of("## Part\n- one\n  more\n- two\n"), ".SS Part\n.IP \\(bu 2\none more\n.IP \\(bu 2\ntwo\n");
        assert_eq!(of("```\n.x \\ 'y'\n```\n"), ".PP\n.RS 4\n.EX\n\\&.x \\e \\(aqy\\(aq\n.EE\n.RE\n");
        assert_eq!(
            of("| key | value | meaning |\n| --- | --- | --- |\n| `a` | b \\| c | Text. |\n| d | | e |\n"),
            ".TP\n\\fBa\\fP\nvalue: b | c. Text.\n.TP\nd\ne\n"
        );
        assert_eq!(of("[TOML](https://toml.io/en/) x"), ".PP\nTOML <https://toml.io/en/> x\n");
    }

    #[test]
    fn a_page() {
        let page = Page {
            name: "bulkhead.cfg",
            section: 5,
            about: "guests of a hypervisor",
            version: "0.1.0",
            date: 1_000_000_000,
            parts: &[("Description", "Text.\n")],
            see_also: &[("bulkhead", 7)],
        };
        let roff = page.roff();
        assert!(roff.contains(".TH BULKHEAD.CFG 5 2001-09-09 \"Bulkhead 0.1.0\""), "{roff}");
        assert!(roff.ends_with(".SH SEE ALSO\n\\fBbulkhead\\fP(7)\n"), "{roff}");
    }

    #[test]
    fn dates() {
        for (days, date) in [(0, (1970, 1, 1)), (11_016, (2000, 2, 29)), (19_722, (2023, 12, 31)), (19_723, (2024, 1, 1))] {
            assert_eq!(civil(days), date);
        }
    }
}
