//! What dpkg does with the package's versions, in a folder instead of a system: the version before stays beside the new one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use tempfile::TempDir;

use super::{Assets, UPGRADES, menu::Setting};
use crate::package::{Products, VERSION, debian_version, output};

/// A folder that dpkg takes for the root of a system.
struct Root(TempDir);

impl Root {
    fn new(assets: &Assets) -> Result<Self> {
        let folder = tempfile::tempdir_in(&assets.work)?;
        for (path, text) in [("var/lib/dpkg/status", ""), ("var/lib/dpkg/available", ""), ("boot/grub/grub.cfg", "not ours\n")] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap_or(folder.path()))?;
            fs::write(path, text)?;
        }
        for path in ["var/lib/dpkg/updates", "var/lib/dpkg/info", "var/lib/dpkg/triggers"] {
            fs::create_dir_all(folder.path().join(path))?;
        }
        Ok(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn dpkg(&self, what: &str, package: &Path) -> Result<()> {
        let mut dpkg = Command::new("dpkg");
        // Owners cannot be set by everybody; there is no GRUB in the folder.
        dpkg.args(["--force-not-root", "--force-script-chrootless", "--force-depends", "--log=/dev/null"]);
        dpkg.arg(format!("--root={}", self.path().display())).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        output(dpkg.arg(what).arg(package)).map(drop)
    }

    fn install(&self, products: &Products) -> Result<()> {
        self.dpkg("--install", &products.deb)
    }

    /// What is in `/boot` of Bulkhead's.
    fn images(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = fs::read_dir(self.path().join("boot"))?
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .filter(|name| name != "grub")
            .collect();
        names.sort();
        Ok(names)
    }

    fn expect(&self, versions: &[&str], when: &str) -> Result<()> {
        let mut wanted: Vec<String> = versions.iter().map(|v| format!("bulkhead-{}.elf.gz", debian_version(v))).collect();
        wanted.sort();
        let found = self.images()?;
        ensure!(found == wanted, "{when}: {found:?} instead of {wanted:?}");
        Ok(())
    }

    /// All files but dpkg's own.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        let mut folders = vec![self.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)?.flatten() {
                let path = entry.path();
                if path.starts_with(self.path().join("var/lib/dpkg")) {
                } else if entry.file_type()?.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path.strip_prefix(self.path())?.to_owned());
                }
            }
        }
        files.sort();
        Ok(files)
    }
}

pub fn upgrade(assets: &Assets) -> Result<()> {
    let root = Root::new(assets)?;
    let [next, last] = UPGRADES;
    root.install(&assets.products)?;
    root.expect(&[VERSION], "installed")?;
    root.install(&assets.products)?;
    root.expect(&[VERSION], "installed again")?;
    root.install(&assets.upgrades[0])?;
    root.expect(&[VERSION, next], "an upgrade keeps the version before")?;
    let first = |wanted: &str, versions: &[&str]| -> Result<()> {
        let setting = Setting::of_boot(assets, root.path().join("boot"))?;
        setting.expect_versions(wanted, versions)
    };
    first(next, &[next, VERSION])?;
    root.install(&assets.upgrades[1])?;
    root.expect(&[next, last], "and one version only")?;
    // The release comes after its candidate.
    first(last, &[last, next])?;
    root.install(&assets.upgrades[0])?;
    root.expect(&[next, last], "so does a downgrade")?;
    root.install(&assets.products)?;
    root.expect(&[VERSION, next], "and the next")?;
    root.dpkg("--remove", Path::new("bulkhead"))?;
    root.expect(&[], "removal takes both")
}

pub fn purge(assets: &Assets) -> Result<()> {
    let root = Root::new(assets)?;
    let before = root.files()?;
    root.install(&assets.products)?;
    root.install(&assets.upgrades[0])?;
    ensure!(root.files()?.len() > before.len() + 10, "nothing was installed: {:?}", root.files()?);
    let own = root.path().join("etc/bulkhead/own.cfg");
    fs::write(&own, "# the administrator's\n")?;
    root.dpkg("--purge", Path::new("bulkhead"))?;
    fs::remove_file(&own)?;
    let after = root.files()?;
    ensure!(before == after, "purge leaves more or less than there was: {before:?}, {after:?}");
    ensure!(!root.path().join("var/lib/bulkhead").exists(), "purge leaves a folder");
    // By then it held nothing but the administrator's own.
    ensure!(fs::read_dir(root.path().join("etc/bulkhead"))?.count() == 0, "purge leaves something in /etc/bulkhead");
    let menu = fs::read_to_string(root.path().join("boot/grub/grub.cfg"))?;
    ensure!(menu == "not ours\n", "the menu was touched: {menu}");
    Ok(())
}
