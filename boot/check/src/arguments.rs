//! The command line.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

/// Where guest configurations are.
pub const FOLDER: &str = "/etc/bulkhead";

pub const HELP: &str = "\
Usage: bulkhead-check [--machine | --guests] [--folder FOLDER] [CONFIG...]
       bulkhead-check --modules CONFIG...
       bulkhead-check --options STRING

Says whether this machine can run Bulkhead, and which guests would start. Run it as root: the firmware's locks cannot be seen otherwise.

  --machine        only the machine
  --guests         only the guests
  --folder FOLDER  take the guests from here [/etc/bulkhead]
  CONFIG...        take these guests instead
  --modules        print what GRUB has to load for these guests: kind, name and path, with tabs between them
  --options        check a hypervisor command line
  --help, --version

Exit status: 0 all is well, 1 this machine cannot run Bulkhead, 2 a guest would be refused (or an option ignored), 3 something could not be
looked at, 64 wrong use.
";

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mode {
    Help,
    Version,
    Check { machine: bool, guests: bool },
    Modules(Vec<PathBuf>),
    Options(String),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arguments {
    pub mode: Mode,
    pub folder: PathBuf,
    /// Instead of those in `folder`.
    pub configs: Vec<PathBuf>,
}

impl Arguments {
    /// `words` are without the program's name. An error is a sentence.
    pub fn parse(words: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let mut words = words;
        let (mut machine, mut guests, mut modules) = (false, false, false);
        let mut folder = PathBuf::from(FOLDER);
        let mut configs = Vec::new();
        let mut only_files = false;
        while let Some(word) = words.next() {
            let text = if only_files { None } else { word.to_str() };
            let mut value = |name: &str| words.next().ok_or_else(|| format!("{name} needs a value"));
            match text {
                Some("--help" | "-h") => return Ok(Self { mode: Mode::Help, folder, configs }),
                Some("--version" | "-V") => return Ok(Self { mode: Mode::Version, folder, configs }),
                Some("--machine") => machine = true,
                Some("--guests") => guests = true,
                Some("--modules") => modules = true,
                Some("--folder") => folder = value("--folder")?.into(),
                Some("--options") => {
                    let options = value("--options")?.to_string_lossy().into_owned();
                    return Ok(Self { mode: Mode::Options(options), folder, configs });
                }
                Some("--") => only_files = true,
                Some(option) if option.starts_with('-') => return Err(format!("unknown option {option}")),
                _ => configs.push(PathBuf::from(&word)),
            }
        }
        if machine && guests {
            return Err("--machine and --guests exclude each other; without both, everything is checked".into());
        }
        if modules && (machine || guests || configs.is_empty() || folder.as_os_str() != OsStr::new(FOLDER)) {
            return Err("--modules takes the names of configurations, and nothing else".into());
        }
        if machine && !configs.is_empty() {
            return Err("--machine looks at no configuration".into());
        }
        let mode = if modules {
            Mode::Modules(std::mem::take(&mut configs))
        } else {
            Mode::Check { machine: !guests, guests: !machine }
        };
        Ok(Self { mode, folder, configs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn what_is_asked_for() {
        assert_eq!(parse("").unwrap().mode, Mode::Check { machine: true, guests: true });
        assert_eq!(parse("--machine").unwrap().mode, Mode::Check { machine: true, guests: false });
        let some = parse("--guests a.cfg -- -b.cfg").unwrap();
        assert_eq!(some.mode, Mode::Check { machine: false, guests: true });
        assert_eq!(some.configs, [PathBuf::from("a.cfg"), PathBuf::from("-b.cfg")]);
        assert_eq!(parse("--modules a.cfg").unwrap().mode, Mode::Modules(vec!["a.cfg".into()]));
        assert_eq!(parse("--options noreboot").unwrap().mode, Mode::Options("noreboot".into()));
        assert_eq!(parse("--folder /x").unwrap().folder, PathBuf::from("/x"));
        for wrong in ["--modules", "--machine --guests", "--machine a.cfg", "--frob", "--folder", "--options"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
