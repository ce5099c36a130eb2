//! Who gets the CPU: round robin over the vCPUs that are ready, with a fixed slice.

use crate::{run::ready, vcpu::VirtCpu};
use alloc::collections::VecDeque;
use x86defs::{Platform, Vcpu};

/// The vCPUs of one host CPU, in the order in which they get it.
pub(crate) struct Scheduler<P: Platform> {
    queue: VecDeque<VirtCpu<P>>,
    /// Guest and vCPU whose lazily switched state this CPU holds.
    loaded: Option<(u32, u32)>,
}

impl<P: Platform> Scheduler<P> {
    pub(crate) const fn new() -> Self {
        Self { queue: VecDeque::new(), loaded: None }
    }

    pub(crate) fn add(&mut self, vcpu: VirtCpu<P>) {
        self.queue.push_back(vcpu);
    }

    /// Takes the first vCPU that is ready.
    pub(crate) fn next(&mut self) -> Option<VirtCpu<P>> {
        let index = self.queue.iter().position(ready)?;
        let mut vcpu = self.queue.remove(index)?;
        vcpu.wake_up();
        Some(vcpu)
    }

    /// True if one in the queue is ready, besides the one taken.
    pub(crate) fn others_ready(&self) -> bool {
        self.queue.iter().any(ready)
    }

    /// Makes this CPU hold the vCPU's state, taking the previous one's out.
    pub(crate) fn load(&mut self, vcpu: &mut VirtCpu<P>) {
        let id = (vcpu.vm.id, vcpu.id);
        if self.loaded == Some(id) {
            return;
        }
        if let Some((vm, index)) = self.loaded.take()
            && let Some(other) = self.queue.iter_mut().find(|v| (v.vm.id, v.id) == (vm, index))
        {
            other.hw.unload();
        }
        vcpu.hw.load();
        self.loaded = Some(id);
    }

    /// Queues a vCPU behind the others.
    pub(crate) fn put_back(&mut self, vcpu: VirtCpu<P>) {
        self.queue.push_back(vcpu);
    }

    /// Takes a vCPU's state out of this CPU, before the vCPU goes away.
    pub(crate) fn unload(&mut self, vcpu: &mut VirtCpu<P>) {
        if self.loaded == Some((vcpu.vm.id, vcpu.id)) {
            vcpu.hw.unload();
            self.loaded = None;
        }
    }

    /// Drops all vCPUs of a guest.
    pub(crate) fn remove(&mut self, vm: u32) {
        if let Some((loaded, index)) = self.loaded
            && loaded == vm
        {
            if let Some(vcpu) = self.queue.iter_mut().find(|v| (v.vm.id, v.id) == (loaded, index)) {
                vcpu.hw.unload();
            }
            self.loaded = None;
        }
        self.queue.retain(|vcpu| vcpu.vm.id != vm);
    }
}
