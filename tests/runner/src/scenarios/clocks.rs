//! Clocks of a guest that has to wait for its CPUs.

use super::{Kernels, Scenario, guest};
use crate::{
    lines::GuestEnd,
    list::{Expect, Platform},
    script::Script,
    size::MemorySize,
};

const GUEST: &str = "clocks";
const HOGS: [&str; 2] = ["hog1", "hog2"];

/// Four vCPUs on one CPU, of which two never give way; the other two are one guest's, whose clocks must keep time, without a beat lost.
pub const OVERCOMMITTED: Scenario = Scenario {
    name: "clocks-overcommitted",
    on: &[Platform::SvmIcount, Platform::VmxBochs],
    cpus: 1,
    memory: MemorySize::from_mib(512),
    options: "conswitch=ax",
    autostart: "parallel",
    kernels: Kernels::TestGuest,
    is_long: false,
    guests: || guests("keeps-time seconds=2"),
    script: |_| {
        let mut script = Script::default().wait(&format!("guest {GUEST}: ended"));
        for hog in HOGS {
            script = script.shell(&format!("destroy {hog}")).wait(&format!("guest {hog}: ended"));
        }
        script
    },
    check: |run| match run.outcome.ends().find(|(name, _)| *name == GUEST) {
        Some((_, how)) => Expect::Pass.check(how),
        None => Expect::Pass.check(&GuestEnd::Destroyed),
    },
};

/// The same for a minute of the guest's time.
pub const OVERCOMMITTED_LONG: Scenario =
    Scenario { name: "clocks-overcommitted-long", is_long: true, guests: || guests("keeps-time seconds=60"), ..OVERCOMMITTED };

fn guests(case: &str) -> Vec<(&'static str, String)> {
    let (name, config) = guest(GUEST, case, "");
    let mut all = vec![(name, config.replace("vcpus = 1", "vcpus = 2"))];
    all.extend(HOGS.map(|hog| guest(hog, "hog", "")));
    all
}
