//! Guest configurations name host files; the hypervisor knows modules. This packs the files and rewrites the names.

use std::{collections::BTreeMap, path::Path};

use toml::de::{DeTable, DeValue};

use crate::image::Modules;

/// The keys whose values are paths on the host.
const PATH_KEYS: [&str; 2] = ["kernel", "ramdisk"];

/// A file that a configuration names and that is not there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MissingFile {
    pub key: String,
    pub path: String,
}

/// The configuration `text` with the paths in it replaced by the names of modules, which are added to `modules`.
///
/// Paths are relative to `folder`. Everything else stays as it is, line by line, so that the hypervisor's messages about a line fit the
/// original; also a text that is no TOML, and the name of a file that does not exist (it is returned too): the hypervisor refuses those.
pub fn pack(text: &str, folder: &Path, modules: &mut Modules) -> (String, Vec<MissingFile>) {
    let (table, _) = DeTable::parse_recoverable(text);
    let mut replacements = BTreeMap::new();
    let mut missing = Vec::new();
    for (key, value) in table.get_ref().iter() {
        let DeValue::String(path) = value.get_ref() else { continue };
        let key: &str = key.get_ref();
        if !PATH_KEYS.contains(&key) {
            continue;
        }
        let file = folder.join(path.as_ref());
        if file.is_file() {
            replacements.insert(value.span().start, (value.span(), modules.add_file(&file)));
        } else {
            missing.push(MissingFile { key: key.to_owned(), path: path.to_string() });
        }
    }
    let mut out = text.to_owned();
    // From the end, so that the earlier spans stay right.
    for (span, name) in replacements.into_values().rev() {
        // A path over several lines keeps its number of lines: the rest become empty ones in a continued string.
        let lines = text[span.clone()].matches('\n').count();
        let literal = if lines == 0 { format!("\"{name}\"") } else { format!("\"\"\"{name}\\{}\"\"\"", "\n".repeat(lines)) };
        out.replace_range(span, &literal);
    }
    (out, missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn setting() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub dir")).unwrap();
        for file in ["vmlinuz", "initrd.img", "sub dir/vmlinuz"] {
            fs::write(dir.path().join(file), file).unwrap();
        }
        dir
    }

    #[test]
    fn paths_become_modules_and_lines_stay() {
        let dir = setting();
        let mut modules = Modules::default();
        let text = "# kernel = \"no\"\nname = \"a\"\nkernel   = 'vmlinuz' # yes\n\nramdisk=\"initrd.img\"\ncmdline = \"kernel=vmlinuz\"\n";
        let (out, missing) = pack(text, dir.path(), &mut modules);
        assert_eq!(out, text.replace("'vmlinuz'", "\"vmlinuz\""));
        assert!(missing.is_empty());
        assert_eq!(modules.names(), ["vmlinuz", "initrd.img"]);

        // A second guest: another file of the same name, and a shared one.
        let text = "kernel = \"sub dir/vmlinuz\"\nramdisk = \"./initrd.img\"\n";
        let (out, _) = pack(text, dir.path(), &mut modules);
        assert_eq!(out, "kernel = \"vmlinuz-2\"\nramdisk = \"initrd.img\"\n");
        assert_eq!(modules.names(), ["vmlinuz", "initrd.img", "vmlinuz-2"]);
    }

    #[test]
    fn a_missing_file_is_passed_through_and_told() {
        let dir = setting();
        let mut modules = Modules::default();
        let text = "kernel = \"gone\"\nramdisk = \"initrd.img\"\n";
        let (out, missing) = pack(text, dir.path(), &mut modules);
        assert_eq!(out, text);
        assert_eq!(missing, [MissingFile { key: "kernel".into(), path: "gone".into() }]);
    }

    #[test]
    fn what_is_no_path_or_no_toml_stays() {
        let dir = setting();
        let mut modules = Modules::default();
        for text in ["kernel = 5\n", "[kernel]\nkernel = \"vmlinuz\"\n", "this is = = no\ntoml [[\n", ""] {
            assert_eq!(pack(text, dir.path(), &mut modules), (text.to_owned(), vec![]), "{text}");
        }
        // Broken in one line, right in another: the right one is still packed, for the message to be about the broken one.
        let (out, _) = pack("kernel = \"vmlinuz\"\nmemory = = 5\n", dir.path(), &mut modules);
        assert_eq!(out.lines().count(), 2);
    }

    #[test]
    fn a_path_over_several_lines_keeps_them() {
        let dir = setting();
        let mut modules = Modules::default();
        let text = "kernel = \"\"\"\\\n   vmlinuz\"\"\"\nname = \"x\"\n";
        let (out, _) = pack(text, dir.path(), &mut modules);
        assert_eq!(out.lines().count(), text.lines().count());
        let table = DeTable::parse(&out).unwrap();
        assert!(matches!(table.get_ref().get("kernel").unwrap().get_ref(), DeValue::String(s) if s == "vmlinuz"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_keeps_its_lines(text: String) {
            let (out, _) = pack(&text, Path::new("/nonexistent"), &mut Modules::default());
            proptest::prop_assert_eq!(out, text);
        }
    }
}
