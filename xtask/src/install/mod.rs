//! The installation's tests: the package is clean, its script makes right menus, and a Debian system with it starts guests and loses nothing.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError, mpsc::channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use runner::{image::Grub, suite};

use crate::{
    debian as default_guest,
    package::{Parts, Products, VERSION},
    tools::{self, Consent},
    workspace::Workspace,
};

mod disk;
mod flow;
mod lint;
mod menu;
mod upgrade;
mod verdict;

/// On what a test runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum On {
    /// This machine.
    Host,
    /// QEMU.
    Qemu,
    Bochs,
}

type Run = fn(&Assets) -> Result<()>;

/// Name, where it runs, and what it does. Longest first.
const TESTS: &[(&str, On, Run)] = &[
    ("bios", On::Qemu, flow::bios),
    ("check-vt-x", On::Bochs, verdict::vt_x),
    ("uefi", On::Qemu, flow::uefi),
    ("check-amd-v", On::Qemu, verdict::amd_v),
    ("check-no-virtualisation", On::Qemu, verdict::none),
    ("upgrade", On::Host, upgrade::upgrade),
    ("purge", On::Host, upgrade::purge),
    ("lintian", On::Host, lint::lintian),
    ("shellcheck", On::Host, lint::shellcheck),
    ("manual-pages", On::Host, lint::manual_pages),
    ("menu-as-installed", On::Host, menu::as_installed),
    ("menu-without-hypervisor", On::Host, menu::without_hypervisor),
    ("menu-without-guests", On::Host, menu::without_guests),
    ("menu-odd-names", On::Host, menu::odd_names),
    ("menu-broken-guest", On::Host, menu::broken_guest),
    ("menu-several-versions", On::Host, menu::several_versions),
    ("menu-separate-boot", On::Host, menu::separate_boot),
    ("menu-unreadable-file", On::Host, menu::unreadable_file),
    ("menu-options", On::Host, menu::options),
    ("menu-flat", On::Host, menu::flat),
];

/// What the tests run with.
pub struct Assets {
    root: PathBuf,
    products: Products,
    /// The same as the next version; and as a version after that.
    upgrades: [Products; 2],
    check: PathBuf,
    debian: Option<disk::Debian>,
    /// The disk with Bulkhead on it, once it is wanted.
    installed: OnceLock<Result<PathBuf>>,
    /// The default guest's; for guests, and for systems that only run `bulkhead-check`.
    initramfs: Option<Vec<u8>>,
    grub: Option<Grub>,
    work: PathBuf,
}

/// The versions that follow this one in the tests.
const UPGRADES: [&str; 2] = ["900.1.0-rc1", "900.1.0"];

#[derive(Clone, Debug, Default)]
pub struct Plan(Vec<(&'static str, On, Run)>);

/// The result of a test.
pub struct Report {
    pub name: String,
    /// What went wrong.
    pub result: Result<()>,
    pub took: Duration,
}

impl Plan {
    /// Those that run where `wanted` and whose names contain `filter`.
    pub fn new(wanted: impl Fn(On) -> bool, filter: &str) -> Self {
        Self(TESTS.iter().filter(|(name, on, _)| wanted(*on) && full_name(name).contains(filter)).copied().collect())
    }

    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(|(name, ..)| full_name(name)).collect()
    }

    /// Runs the tests, `at_once` at a time; calls `report` with each result as it comes.
    pub fn run(&self, workspace: &Workspace, consent: Consent, at_once: usize, mut report: impl FnMut(Report)) -> Result<()> {
        let work = suite::work_folder(&workspace.cache)?;
        let assets = self.assets(workspace, consent, work.path())?;
        let queue = Mutex::new(VecDeque::from(self.0.clone()));
        let (sender, receiver) = channel();
        thread::scope(|scope| {
            for _ in 0..at_once {
                let (queue, sender, assets) = (&queue, sender.clone(), &assets);
                scope.spawn(move || {
                    loop {
                        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                        let Some((name, _, run)) = next else { return };
                        let start = Instant::now();
                        let result = run(assets);
                        let _ = sender.send(Report { name: full_name(name), result, took: start.elapsed() });
                    }
                });
            }
            drop(sender);
            receiver.into_iter().for_each(&mut report);
        });
        Ok(())
    }

    fn assets(&self, workspace: &Workspace, consent: Consent, work: &Path) -> Result<Assets> {
        let any = |wanted: On| self.0.iter().any(|(_, on, _)| *on == wanted);
        let mut needed = vec![tools::PACKAGE];
        if any(On::Host) {
            needed.push(tools::PACKAGE_CHECKS);
        }
        if any(On::Qemu) {
            needed.extend([tools::QEMU, tools::UEFI]);
        }
        if any(On::Bochs) {
            needed.extend([tools::BOCHS, tools::IMAGE]);
        }
        tools::need(&needed, consent)?;
        let parts = Parts::build(workspace, consent)?;
        let make = |version: &str| parts.write(&workspace.root, version, &work.join(format!("package-{version}")));
        let machines = any(On::Qemu) || any(On::Bochs);
        Ok(Assets {
            root: workspace.root.clone(),
            products: make(VERSION)?,
            upgrades: [make(UPGRADES[0])?, make(UPGRADES[1])?],
            check: parts.check().to_owned(),
            debian: if machines { Some(disk::debian(&workspace.cache, consent)?) } else { None },
            installed: OnceLock::new(),
            initramfs: if machines { Some(default_guest::initramfs(&workspace.cache, None, consent)?) } else { None },
            grub: if any(On::Bochs) { Some(Grub::prepare(&workspace.cache)?) } else { None },
            work: work.to_owned(),
        })
    }
}

fn full_name(name: &str) -> String {
    format!("install/{name}")
}
