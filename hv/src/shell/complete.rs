//! What the word at the cursor could become.

use super::{
    editor::Completion,
    operator::Operator,
    verb::{Arg, Verb},
};
use alloc::{string::String, string::ToString, vec::Vec};

/// The completions of the last word of `line`, which is the line up to the cursor.
pub(super) fn complete(line: &[u8], operator: &dyn Operator) -> Completion {
    let line = core::str::from_utf8(line).unwrap_or_default();
    let (before, typed) = line.split_at(line.rfind(' ').map_or(0, |at| at + 1));
    let before: Vec<&str> = before.split_ascii_whitespace().collect();
    let words = match before.split_first() {
        None => verbs(),
        Some((verb, words)) => Verb::find(verb).map(|verb| candidates(verb, words, typed, operator)).unwrap_or_default(),
    };
    let nameable = |word: &String| word.bytes().all(|b| b.is_ascii_graphic());
    let mut words: Vec<Vec<u8>> =
        words.into_iter().filter(|word| word.starts_with(typed)).filter(nameable).map(String::into_bytes).collect();
    words.sort_unstable();
    words.dedup();
    Completion { typed: typed.len(), words }
}

fn verbs() -> Vec<String> {
    Verb::ALL.into_iter().map(|verb| verb.name().into()).collect()
}

/// What may stand after `words`.
fn candidates(verb: Verb, words: &[&str], typed: &str, operator: &dyn Operator) -> Vec<String> {
    let entry = verb.entry();
    if typed.starts_with('-') {
        return entry.flags.iter().map(|&flag| flag.into()).collect();
    }
    if verb == Verb::SchedCredit2 {
        return if words.last() == Some(&"-d") { guests(operator) } else { Vec::new() };
    }
    let mut places = words.iter().filter(|word| !word.starts_with('-'));
    let guest = places.clone().next();
    let place = places.by_ref().count();
    // The last kind repeats for verbs that take any number.
    let arg = match verb {
        Verb::VcpuList | Verb::Uptime => entry.args.first(),
        _ => entry.args.get(place),
    };
    match arg {
        None => Vec::new(),
        Some(Arg::Verb) => verbs(),
        Some(Arg::Guest) => guests(operator),
        Some(Arg::Config) => operator.modules().into_iter().filter(|name| name.ends_with(".cfg")).collect(),
        Some(Arg::Trigger) => ["nmi", "power", "sleep", "reset"].map(String::from).into(),
        Some(Arg::Vcpu) => {
            let guest = guest.and_then(|word| super::exec::find(operator, word).ok());
            let numbers = (0..guest.map_or(0, |guest| guest.vcpus)).map(|n| n.to_string());
            let all = (verb == Verb::VcpuPin).then(|| String::from("all"));
            numbers.chain(all).collect()
        }
        Some(Arg::Cpus) => (0..operator.host().cpus).map(|n| n.to_string()).chain(["all".into()]).collect(),
    }
}

fn guests(operator: &dyn Operator) -> Vec<String> {
    operator.guests().into_iter().map(|guest| guest.name).collect()
}
