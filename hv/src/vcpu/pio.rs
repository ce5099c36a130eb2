//! Port exits: to the board's bus, or for strings to the instruction emulator.

use super::{Context, Stop, VirtCpu};
use x86defs::{Platform, Resume, Vcpu, Width};

impl<P: Platform> VirtCpu<P> {
    #[inline(always)]
    pub(super) fn port_read(&mut self, cx: &Context<'_, P>, port: u16, width: Width) -> Result<(), Stop> {
        let value = self.vm.board.port_read(cx, port, width);
        self.hw.complete(Resume::PortRead(value));
        self.after_device_access(cx)
    }

    #[inline(always)]
    pub(super) fn port_write(&mut self, cx: &Context<'_, P>, port: u16, width: Width, value: u32) -> Result<(), Stop> {
        self.vm.board.port_write(cx, port, width, value);
        self.hw.complete(Resume::Advance);
        self.after_device_access(cx)
    }
}
