//! A scripted machine for host tests: vCPUs that play back exits and write down the answers, RAM in a `Vec`, time that tests set.

use crate::vcpu::{
    CpuidPolicy, Xcr0Policy,
    features::{CpuidMask, Features},
};
use alloc::{collections::VecDeque, sync::Arc, vec, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::Mutex;
use x86defs::{
    Attention, CpuidResult, Cr0, Cr4, CreateError, Efer, Exception, Exit, Gpa, Gprs, GuestMemory, OutsideRam, Owner, Platform,
    RamRange, Resume, Rflags, Segment, SegmentRegister, TaskSwitch, UnknownMsr, Vcpu, VcpuConfig, VcpuState, Width,
    paging::PagingContext,
};

/// RAM in host memory.
pub struct FakeMemory {
    ranges: Vec<RamRange>,
    bytes: Mutex<Vec<Vec<u8>>>,
}

impl FakeMemory {
    pub fn new(ranges: &[RamRange]) -> Self {
        let bytes = ranges.iter().map(|r| vec![0; r.size as usize]).collect();
        Self { ranges: ranges.to_vec(), bytes: Mutex::new(bytes) }
    }

    fn with<R>(&self, gpa: Gpa, len: usize, f: impl FnOnce(&mut [u8]) -> R) -> Result<R, OutsideRam> {
        let found = self.ranges.iter().position(|r| gpa >= r.gpa && gpa.0 - r.gpa.0 + len as u64 <= r.size);
        let index = found.ok_or(OutsideRam(gpa))?;
        let start = (gpa.0 - self.ranges[index].gpa.0) as usize;
        Ok(f(&mut self.bytes.lock().unwrap()[index][start..start + len]))
    }
}

impl GuestMemory for FakeMemory {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), OutsideRam> {
        self.with(gpa, buf.len(), |ram| buf.copy_from_slice(ram))
    }
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), OutsideRam> {
        self.with(gpa, data.len(), |ram| ram.copy_from_slice(data))
    }
    fn fill(&self, gpa: Gpa, len: u64, value: u8) -> Result<(), OutsideRam> {
        self.with(gpa, len as usize, |ram| ram.fill(value))
    }
    fn compare_exchange(&self, gpa: Gpa, width: Width, old: u64, new: u64) -> Result<Result<u64, u64>, OutsideRam> {
        self.with(gpa, width.bytes(), |ram| {
            let mut found = [0; 8];
            found[..ram.len()].copy_from_slice(ram);
            let found = u64::from_le_bytes(found);
            if found != old {
                return Err(found);
            }
            ram.copy_from_slice(&new.to_le_bytes()[..width.bytes()]);
            Ok(old)
        })
    }
    fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }
}

/// A vCPU that plays back a script and keeps what it was told.
pub struct FakeVcpu {
    pub script: VecDeque<Exit>,
    /// The answers to the exits so far.
    pub resumes: Vec<Resume>,
    pub state: VcpuState,
    pub tsc_offset: u64,
    pub xcr0: u64,
    pub interrupts: Vec<u8>,
    pub nmis: u32,
    pub window: bool,
    pub nmi_window: bool,
    /// The guest is about an NMI.
    pub in_nmi: bool,
    /// Whether the guest takes interrupts (IF and shadow are the hardware's business).
    pub interruptible: bool,
    pub instruction: Vec<u8>,
    pub vectors: [[u128; 2]; 16],
    /// What new tasks began with.
    pub exceptions: Vec<Exception>,
    pub flushes: u32,
}

impl FakeVcpu {
    pub fn new(script: &[Exit]) -> Self {
        let mut state = VcpuState::reset(0x306c3);
        state.rflags |= Rflags::IF.bits();
        Self {
            script: script.iter().copied().collect(),
            resumes: Vec::new(),
            state,
            tsc_offset: 0,
            xcr0: 1,
            interrupts: Vec::new(),
            nmis: 0,
            window: false,
            nmi_window: false,
            in_nmi: false,
            interruptible: true,
            instruction: Vec::new(),
            vectors: [[0; 2]; 16],
            exceptions: Vec::new(),
            flushes: 0,
        }
    }
}

impl Vcpu for FakeVcpu {
    fn load(&mut self) {}
    fn unload(&mut self) {}
    fn complete(&mut self, resume: Resume) {
        self.resumes.push(resume);
        match resume {
            Resume::Emulated { rip, rflags } => {
                self.state.rip = rip;
                self.state.rflags = rflags;
            }
            Resume::AdvanceTo(rip) => self.state.rip = rip,
            Resume::ControlWrite(_) | Resume::Advance => self.state.rip += 1,
            _ => {}
        }
    }
    /// Plays the next exit; at the end of the script the guest triple-faults, which ends every run loop.
    fn run<O: Owner<Self>>(owner: &mut O) -> O::Outcome {
        let exit = owner.vcpu().script.pop_front().unwrap_or(Exit::TripleFault);
        owner.answer(exit)
    }
    fn gprs(&self) -> &Gprs {
        &self.state.gprs
    }
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.state.gprs
    }
    fn rip(&self) -> u64 {
        self.state.rip
    }
    fn rflags(&self) -> u64 {
        self.state.rflags
    }
    fn cr0(&self) -> u64 {
        self.state.cr0
    }
    fn cr3(&self) -> u64 {
        self.state.cr3
    }
    fn cr4(&self) -> u64 {
        self.state.cr4
    }
    fn efer(&self) -> u64 {
        self.state.efer
    }
    fn segment(&self, register: SegmentRegister) -> Segment {
        match register {
            SegmentRegister::Es => self.state.es,
            SegmentRegister::Cs => self.state.cs,
            SegmentRegister::Ss => self.state.ss,
            SegmentRegister::Ds => self.state.ds,
            SegmentRegister::Fs => self.state.fs,
            SegmentRegister::Gs => self.state.gs,
            SegmentRegister::Ldtr => self.state.ldtr,
            SegmentRegister::Tr => self.state.tr,
        }
    }
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        match register {
            SegmentRegister::Es => self.state.es = segment,
            SegmentRegister::Cs => self.state.cs = segment,
            SegmentRegister::Ss => self.state.ss = segment,
            SegmentRegister::Ds => self.state.ds = segment,
            SegmentRegister::Fs => self.state.fs = segment,
            SegmentRegister::Gs => self.state.gs = segment,
            SegmentRegister::Ldtr => self.state.ldtr = segment,
            SegmentRegister::Tr => self.state.tr = segment,
        }
    }
    fn vector(&mut self, index: u8) -> [u128; 2] {
        self.vectors[usize::from(index)]
    }
    fn set_xmm(&mut self, index: u8, value: u128) {
        self.vectors[usize::from(index)][0] = value;
    }
    fn set_ymm(&mut self, index: u8, value: [u128; 2]) {
        self.vectors[usize::from(index)] = value;
    }
    fn cpl(&self) -> u8 {
        self.state.ss.attributes.dpl()
    }
    fn in_64_bit_mode(&self) -> bool {
        self.state.efer & Efer::LMA.bits() != 0 && self.state.cs.attributes.long()
    }
    fn paging(&self) -> PagingContext {
        PagingContext {
            cr0: self.state.cr0,
            cr3: self.state.cr3,
            cr4: self.state.cr4,
            efer: self.state.efer,
            rflags: self.state.rflags,
            cpl: self.cpl(),
        }
    }
    fn instruction_bytes(&self) -> &[u8] {
        &self.instruction
    }
    fn state(&self) -> VcpuState {
        self.state
    }
    fn set_state(&mut self, state: &VcpuState) {
        self.state = *state;
    }
    fn enter_task(&mut self, _: &TaskSwitch, state: &VcpuState, exception: Option<Exception>) {
        self.state = *state;
        self.exceptions.extend(exception);
    }
    fn read_msr(&self, index: u32) -> Result<u64, UnknownMsr> {
        if index == x86defs::msr::IA32_EFER { Ok(self.state.efer) } else { Ok(0) }
    }
    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), UnknownMsr> {
        if index == x86defs::msr::IA32_EFER {
            self.state.efer = value;
        }
        Ok(())
    }
    fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
    }
    fn xcr0(&self) -> u64 {
        self.xcr0
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }
    fn can_take_interrupt(&self) -> bool {
        self.interruptible
    }
    fn inject_interrupt(&mut self, vector: u8) {
        assert!(self.interruptible, "injected into a closed window");
        self.interrupts.push(vector);
        self.interruptible = false;
    }
    fn request_interrupt_window(&mut self, wanted: bool) {
        self.window = wanted;
    }
    fn can_take_nmi(&self) -> bool {
        !self.in_nmi
    }
    fn is_in_nmi(&self) -> bool {
        self.in_nmi
    }
    fn inject_nmi(&mut self) {
        self.nmis += 1;
    }
    fn request_nmi_window(&mut self, wanted: bool) {
        self.nmi_window = wanted;
    }
    fn inject_exception(&mut self, _: Exception) {}
    fn flush_tlb(&mut self) {
        self.flushes += 1;
    }
    fn dump(&self, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
        writeln!(out, "scripted vCPU, {} exits left", self.script.len())
    }
}

/// A machine whose CPUID says yes to every feature, with a TSC of 1 GHz that moves only when told.
pub struct FakePlatform {
    pub tsc: AtomicU64,
    pub timer: AtomicU64,
    pub output: Mutex<Vec<u8>>,
    /// Bytes that the console has room for.
    pub room: AtomicUsize,
    pub input: Mutex<VecDeque<u8>>,
    /// Scripts for the vCPUs to come.
    pub scripts: Mutex<VecDeque<Vec<Exit>>>,
    /// What the host interrupts to come will have brought; after that, something that is not the timer each.
    pub attention: Mutex<VecDeque<Attention>>,
    /// Something will end a halt, timer or not.
    pub interrupted: AtomicBool,
    /// CPUID's vendor is AMD, not Intel.
    pub amd: bool,
}

impl Default for FakePlatform {
    fn default() -> Self {
        Self::new()
    }
}

impl FakePlatform {
    pub fn new() -> Self {
        Self {
            tsc: AtomicU64::new(1000),
            timer: AtomicU64::new(u64::MAX),
            output: Mutex::default(),
            room: AtomicUsize::new(usize::MAX),
            input: Mutex::default(),
            scripts: Mutex::default(),
            attention: Mutex::default(),
            interrupted: AtomicBool::new(false),
            amd: false,
        }
    }

    pub fn amd() -> Self {
        Self { amd: true, ..Self::new() }
    }
}

impl Platform for FakePlatform {
    type Vcpu = FakeVcpu;
    type Memory = FakeMemory;

    fn vendor(&self) -> &'static str {
        "scripted"
    }
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        let ones = CpuidResult { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };
        match leaf {
            0 if self.amd => CpuidResult { eax: 0x10, ebx: 0x6874_7541, ecx: 0x444d_4163, edx: 0x6974_6e65 },
            0 => CpuidResult { eax: 0x1f, ebx: 0x756e_6547, ecx: 0x6c65_746e, edx: 0x4965_6e69 },
            1 => CpuidResult { eax: 0x306c3, ..ones },
            0xd if subleaf == 0 => CpuidResult { eax: 0x2e7, ebx: 576, ecx: 2696, edx: 0 },
            0xd if subleaf == 1 => ones,
            0xd => CpuidResult { eax: 64, ebx: 576, ecx: 0, edx: 0 },
            0x8000_0000 => CpuidResult { eax: 0x8000_0020, ..CpuidResult::default() },
            0x8000_0008 => CpuidResult { eax: 0x3028, ..ones },
            _ => ones,
        }
    }
    fn create_memory(&self, ranges: &[RamRange]) -> Result<FakeMemory, CreateError> {
        Ok(FakeMemory::new(ranges))
    }
    fn create_vcpu(&self, _: &Arc<FakeMemory>, _: &VcpuConfig) -> Result<FakeVcpu, CreateError> {
        Ok(FakeVcpu::new(&self.scripts.lock().unwrap().pop_front().unwrap_or_default()))
    }
    fn memory(&self) -> (u64, u64) {
        (1 << 30, 2 << 30)
    }
    fn heap_in_use(&self) -> u64 {
        1 << 20
    }
    fn tsc(&self) -> u64 {
        self.tsc.load(Ordering::Relaxed)
    }
    fn tsc_hz(&self) -> u64 {
        1_000_000_000
    }
    fn wall_clock_ms(&self, tsc: u64) -> u64 {
        1_700_000_000_000 + tsc / 1_000_000
    }
    fn set_timer(&self, deadline: Option<u64>) {
        self.timer.store(deadline.unwrap_or(u64::MAX), Ordering::Relaxed);
    }
    fn take_attention(&self) -> Attention {
        self.attention.lock().unwrap().pop_front().unwrap_or(Attention::OTHER)
    }
    fn wait_for_interrupt(&self) {
        let deadline = self.timer.load(Ordering::Relaxed);
        if self.interrupted.load(Ordering::Relaxed) {
            return;
        }
        assert_ne!(deadline, u64::MAX, "halted for ever");
        self.tsc.fetch_max(deadline, Ordering::Relaxed);
    }
    fn cpus(&self) -> u32 {
        1
    }
    fn this_cpu(&self) -> u32 {
        0
    }
    fn start_cpus(&'static self, _main: &'static (dyn Fn(u32) + Sync)) {}
    fn kick(&self, _cpu: u32) {}

    fn console_write(&self, bytes: &[u8]) -> usize {
        let room = self.room.load(Ordering::Relaxed);
        if bytes.len() > room {
            return 0;
        }
        self.room.store(room - bytes.len(), Ordering::Relaxed);
        self.output.lock().unwrap().extend_from_slice(bytes);
        bytes.len()
    }
    fn console_read(&self) -> Option<u8> {
        self.input.lock().unwrap().pop_front()
    }
    fn power_off(&self) -> ! {
        panic!("powered off");
    }
    fn reset(&self) -> ! {
        panic!("reset");
    }
}

/// Paging and mode helpers for tests that emulate instructions: flat 64-bit code with paging identity-mapped by hand is more than most
/// need, so this gives flat 32-bit protected mode without paging.
pub fn flat_protected_mode(vcpu: &mut FakeVcpu, rip: u64) {
    let s = &mut vcpu.state;
    s.cr0 = (Cr0::PE | Cr0::ET).bits();
    s.cr4 = Cr4::empty().bits();
    s.efer = Efer::empty().bits();
    s.cs = Segment::flat(8, 0xb, false);
    for segment in [&mut s.ds, &mut s.es, &mut s.ss, &mut s.fs, &mut s.gs] {
        *segment = Segment::flat(16, 3, false);
    }
    s.rip = rip;
}

/// The CPUID policy of a vCPU on `platform`, with a TSC of 2 GHz.
pub fn cpuid_policy(platform: &FakePlatform, id: u32, vcpus: u32, mask: &CpuidMask) -> CpuidPolicy {
    let features = Features::new(platform, vcpus, mask).unwrap();
    CpuidPolicy::new(platform, &features, id, vcpus, &Xcr0Policy::new(&features), 2_000_000_000)
}
