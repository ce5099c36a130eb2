//! A scripted host: guests that tests make up, and a list of what was asked of it.

use super::operator::{
    DebugKey, GuestFlags, GuestInfo, HostInfo, Operator, OperatorError, Start, Trigger, VcpuActivity, VcpuInfo,
};
use crate::{cpumask::CpuMask, testing::FakePlatform};
use alloc::{format, string::String, sync::Arc, vec::Vec};
use core::{
    cell::{Cell, RefCell},
    fmt,
};
use x86defs::{Duration, Platform as _, Time};

pub struct FakeHost {
    pub guests: RefCell<Vec<(GuestInfo, Vec<VcpuInfo>)>>,
    /// What was asked, one entry a call.
    pub calls: RefCell<Vec<String>>,
    /// What the next action is answered with.
    pub refusal: RefCell<Option<OperatorError>>,
    pub log: RefCell<Vec<u8>>,
    /// Bytes at the log's start that are kept no more.
    pub log_start: Cell<usize>,
    pub now: Cell<u64>,
    pub modules: Vec<&'static str>,
    /// Where calls are shown, as a host logs what it does.
    pub on_call: RefCell<Option<Arc<FakePlatform>>>,
}

pub const SECOND: u64 = 1_000_000_000;

pub fn guest(id: u32, name: &str, vcpus: u32, flags: GuestFlags) -> (GuestInfo, Vec<VcpuInfo>) {
    let times = |n: u32| u64::from(n + 1) * 1_550_000_000;
    let infos = (0..vcpus).map(|n| VcpuInfo {
        id: n,
        cpu: Some(n),
        activity: [VcpuActivity::Running, VcpuActivity::Blocked, VcpuActivity::Ready, VcpuActivity::Offline][n as usize % 4],
        cpu_time: Duration(times(n)),
        exits: 1000,
        affinity: if n == 0 { CpuMask::ALL } else { CpuMask::from_iter([0, 1, 3]) },
    });
    let info = GuestInfo {
        id,
        name: name.into(),
        memory: (512 << 20) - (128 << 10),
        vcpus,
        flags,
        cpu_time: Duration((0..vcpus).map(times).sum()),
        started: Time(SECOND),
        weight: 256,
        cap: 0,
    };
    (info, infos.collect())
}

impl Default for FakeHost {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeHost {
    /// `web` (1, two vCPUs), `db` (3, four vCPUs, blocked) and `old` (2, crashed and kept) on four CPUs.
    pub fn new() -> Self {
        let guests = alloc::vec![
            guest(1, "web", 2, GuestFlags::RUNNING),
            guest(2, "old", 1, GuestFlags::CRASHED),
            guest(3, "db", 4, GuestFlags::BLOCKED),
        ];
        Self {
            guests: RefCell::new(guests),
            calls: RefCell::default(),
            refusal: RefCell::default(),
            log: RefCell::new(b"(BH) Bulkhead 0.1.0\n(BH) guest web: started\n".to_vec()),
            log_start: Cell::new(0),
            now: Cell::new(100_000 * SECOND),
            modules: alloc::vec!["web.cfg", "vmlinuz", "db.cfg", "mail.cfg"],
            on_call: RefCell::default(),
        }
    }

    pub fn calls(&self) -> Vec<String> {
        self.calls.take()
    }

    fn call(&self, text: String) -> Result<(), OperatorError> {
        if let Some(platform) = &*self.on_call.borrow() {
            platform.console_write(format!("<{text}>").as_bytes());
        }
        self.calls.borrow_mut().push(text);
        self.refusal.take().map_or(Ok(()), Err)
    }
}

impl Operator for FakeHost {
    fn guests(&self) -> Vec<GuestInfo> {
        self.guests.borrow().iter().map(|(guest, _)| guest.clone()).collect()
    }
    fn vcpus(&self, guest: u32) -> Vec<VcpuInfo> {
        self.guests.borrow().iter().find(|(info, _)| info.id == guest).map(|(_, vcpus)| vcpus.clone()).unwrap_or_default()
    }
    fn host(&self) -> HostInfo {
        HostInfo {
            version: "0.1.0".into(),
            cmdline: "console=com1 loglvl=all".into(),
            cpu_model: "Scripted CPU @ 2.40GHz".into(),
            virtualisation: "VT-x",
            cpus: 4,
            tsc_hz: 2_400_012_345,
            memory_total: 4096 << 20,
            memory_free: 1000 << 20,
            scheduler: "credit2",
        }
    }
    fn now(&self) -> Time {
        Time(self.now.get())
    }
    fn modules(&self) -> Vec<String> {
        self.modules.iter().map(|&name| name.into()).collect()
    }
    fn log(&self, from: u64, buffer: &mut [u8]) -> (usize, u64) {
        let log = self.log.borrow();
        let from = (from as usize).clamp(self.log_start.get(), log.len());
        let count = buffer.len().min(log.len() - from);
        buffer[..count].copy_from_slice(&log[from..from + count]);
        (count, (from + count) as u64)
    }

    fn create(&self, config: &str, start: Start) -> Result<u32, OperatorError> {
        self.call(format!("create {config} {start:?}")).map(|()| 9)
    }
    fn destroy(&self, guest: u32) -> Result<(), OperatorError> {
        self.call(format!("destroy {guest}"))
    }
    fn pause(&self, guest: u32) -> Result<(), OperatorError> {
        self.call(format!("pause {guest}"))
    }
    fn unpause(&self, guest: u32) -> Result<(), OperatorError> {
        self.call(format!("unpause {guest}"))
    }
    fn reboot(&self, guest: u32) -> Result<(), OperatorError> {
        self.call(format!("reboot {guest}"))
    }
    fn trigger(&self, guest: u32, trigger: Trigger) -> Result<(), OperatorError> {
        self.call(format!("trigger {guest} {trigger:?}"))
    }
    fn pin(&self, guest: u32, vcpu: Option<u32>, cpus: &CpuMask) -> Result<(), OperatorError> {
        self.call(format!("pin {guest} {vcpu:?} {cpus}"))
    }
    fn set_share(&self, guest: u32, weight: Option<u16>, cap: Option<u32>) -> Result<(), OperatorError> {
        self.call(format!("share {guest} {weight:?} {cap:?}"))
    }
    fn focus(&self, guest: u32) -> Result<(), OperatorError> {
        self.call(format!("focus {guest}"))
    }
    fn debug(&self, key: DebugKey, out: &mut dyn fmt::Write) -> Result<(), OperatorError> {
        self.call(format!("debug {key:?}"))?;
        writeln!(out, "state of {key:?}").map_err(|_| OperatorError::Unsupported)
    }
    fn power_off(&self) {
        self.calls.borrow_mut().push("power off".into());
    }
    fn reset(&self) {
        self.calls.borrow_mut().push("reset".into());
    }
}
