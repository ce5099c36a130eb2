//! The ACPI fixed hardware of the ICH9: PM1a event and control registers, the power-management timer, and GPE0.
//!
//! Intel ICH9 data sheet, 316972-004, 13.8.3; ACPI 6.5, chapter 4.
//!
//! There is no SMM behind it: the machine is in ACPI mode from the start (SCI_EN reads one), and the SMI and processor-control
//! registers of the block read zero.

mod spec;
#[cfg(test)]
mod tests;

use crate::{
    Line, PortDevice, TimedDevice,
    ports::{read_bytes, write_bytes},
    ticks::TickClock,
};
use serde::{Deserialize, Serialize};
use spec::{
    Control, GPE_CONTROL, GPE0_ENABLE, GPE0_END, GPE0_STATUS, PM_TIMER, PM1_CONTROL, PM1_ENABLE, PM1_STATUS, Pm1, SLP_TYP_S5,
    SLP_TYP_SHIFT, SWGPE, SWGPE_CTRL, THRM_POL, TIMER_HZ,
};
use x86defs::{Time, Width};

/// Ports that the block has.
pub const PORTS: u16 = 0x80;
/// General-purpose events.
pub const GPES: u8 = 64;

/// How wide the timer is: ACPI's FADT says so to the guest (TMR_VAL_EXT).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PmTimerWidth {
    Bits24 = 24,
    Bits32 = 32,
}

/// What the guest asks of its power supply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PowerEvent {
    /// S5.
    SoftOff,
    /// Another sleeping state, by its SLP_TYP.
    Sleep { slp_typ: u8 },
}

/// The block.
pub struct AcpiPm {
    status: Pm1,
    enable: Pm1,
    control: Control,
    gpe_status: u64,
    gpe_enable: u64,
    gpe_control: u8,
    width: PmTimerWidth,
    clock: TickClock,
    /// The timer's tick up to which its overflows are in the status.
    handled: u64,
    event: Option<PowerEvent>,
    sci: Line,
    deadline: Option<Time>,
}

/// What an [`AcpiPm`] saves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AcpiPmState {
    pub status: u16,
    pub enable: u16,
    pub control: u16,
    pub gpe_status: u64,
    pub gpe_enable: u64,
    pub gpe_control: u8,
    pub width: PmTimerWidth,
    pub handled: u64,
    pub event: Option<PowerEvent>,
}

impl AcpiPm {
    /// The block after a cold start. `sci` is level-triggered, active high.
    #[must_use]
    pub fn new(sci: Line, width: PmTimerWidth) -> Self {
        Self {
            status: Pm1::empty(),
            enable: Pm1::empty(),
            control: Control::SCI_EN,
            gpe_status: 0,
            gpe_enable: 0,
            gpe_control: 0,
            width,
            clock: TickClock::new(TIMER_HZ),
            handled: 0,
            event: None,
            sci,
            deadline: None,
        }
    }

    /// What the guest has asked for since this was last called.
    pub fn take_event(&mut self) -> Option<PowerEvent> {
        self.event.take()
    }

    /// Somebody presses the power button.
    pub fn press_power_button(&mut self) {
        self.set_status(Pm1::PWRBTN);
    }

    /// Somebody presses the sleep button.
    pub fn press_sleep_button(&mut self) {
        self.set_status(Pm1::SLPBTN);
    }

    /// The real-time clock's interrupt rises.
    pub fn rtc_alarm(&mut self) {
        self.set_status(Pm1::RTC);
    }

    /// The machine comes back from a sleeping state.
    pub fn wake(&mut self) {
        self.set_status(Pm1::WAK);
    }

    /// General-purpose event `gpe`, below [`GPES`], happens.
    pub fn raise_gpe(&mut self, gpe: u8) {
        self.gpe_status |= 1u64.checked_shl(gpe.into()).unwrap_or(0);
        self.update_sci();
    }

    fn set_status(&mut self, status: Pm1) {
        self.status |= status;
        self.update_sci();
    }

    /// Ticks between two changes of the timer's highest bit.
    fn half_range(&self) -> u64 {
        1 << (self.width as u32 - 1)
    }

    /// The timer's register.
    fn timer(&self, now: Time) -> u32 {
        let value = self.clock.ticks(now) as u32;
        match self.width {
            PmTimerWidth::Bits24 => value & 0xff_ffff,
            PmTimerWidth::Bits32 => value,
        }
    }

    fn sync(&mut self, now: Time) {
        let tick = self.clock.ticks(now).max(self.handled);
        let half = self.half_range();
        if tick / half != self.handled / half {
            self.status |= Pm1::TMR;
        }
        self.handled = tick;
    }

    /// Drives the SCI, and finds out when it has to be driven next.
    fn update_sci(&mut self) {
        let fixed = self.status & self.enable & Pm1::SCI_SOURCES;
        self.sci.set(!fixed.is_empty() || self.gpe_status & self.gpe_enable != 0);
        self.deadline = if self.enable.contains(Pm1::TMR) && !self.status.contains(Pm1::TMR) {
            let half = self.half_range();
            (self.handled / half + 1).checked_mul(half).and_then(|tick| self.clock.time_of(tick))
        } else {
            None
        };
    }

    fn read(&self, now: Time, offset: u16) -> u8 {
        let byte = |value: u64, first: u16| value.to_le_bytes().get(usize::from(offset - first)).copied().unwrap_or(0);
        match offset {
            PM1_STATUS..PM1_ENABLE => byte(self.status.bits().into(), PM1_STATUS),
            PM1_ENABLE..PM1_CONTROL => byte(self.enable.bits().into(), PM1_ENABLE),
            PM1_CONTROL..PM_TIMER => byte(self.control.bits().into(), PM1_CONTROL),
            PM_TIMER..0x0c => byte(self.timer(now).into(), PM_TIMER),
            GPE0_STATUS..GPE0_ENABLE => byte(self.gpe_status, GPE0_STATUS),
            GPE0_ENABLE..GPE0_END => byte(self.gpe_enable, GPE0_ENABLE),
            GPE_CONTROL => self.gpe_control,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u16, value: u8) {
        let place = |first: u16| (u64::from(value) << (8 * (offset - first)), 0xffu64 << (8 * (offset - first)));
        match offset {
            // Ones clear.
            PM1_STATUS..PM1_ENABLE => {
                let (bits, _) = place(PM1_STATUS);
                self.status -= Pm1::from_bits_truncate(bits as u16);
            }
            PM1_ENABLE..PM1_CONTROL => {
                let (bits, mask) = place(PM1_ENABLE);
                let enable = self.enable.bits() & !mask as u16 | bits as u16;
                self.enable = Pm1::from_bits_truncate(enable) & Pm1::SCI_SOURCES;
            }
            PM1_CONTROL..PM_TIMER => {
                let (bits, mask) = place(PM1_CONTROL);
                self.write_control(bits as u16, mask as u16);
            }
            GPE0_STATUS..GPE0_ENABLE => {
                self.gpe_status &= !place(GPE0_STATUS).0;
                self.hold_software_gpe();
            }
            GPE0_ENABLE..GPE0_END => {
                let (bits, mask) = place(GPE0_ENABLE);
                self.gpe_enable = self.gpe_enable & !mask | bits;
            }
            GPE_CONTROL => {
                self.gpe_control = value & (SWGPE_CTRL | THRM_POL);
                self.hold_software_gpe();
            }
            _ => {}
        }
    }

    /// The software's own event is a level: cleared while that is still there, it comes again.
    fn hold_software_gpe(&mut self) {
        if self.gpe_control & SWGPE_CTRL != 0 {
            self.gpe_status |= SWGPE;
        }
    }

    fn write_control(&mut self, bits: u16, mask: u16) {
        let control = Control::from_bits_truncate(self.control.bits() & !mask | bits);
        self.control = control & Control::WRITABLE | Control::SCI_EN;
        if bits & Control::SLP_EN.bits() != 0 {
            let slp_typ = ((control & Control::SLP_TYP).bits() >> SLP_TYP_SHIFT) as u8;
            self.event = Some(match slp_typ {
                SLP_TYP_S5 => PowerEvent::SoftOff,
                slp_typ => PowerEvent::Sleep { slp_typ },
            });
        }
    }

    #[must_use]
    pub fn save(&self) -> AcpiPmState {
        let Self {
            status,
            enable,
            control,
            gpe_status,
            gpe_enable,
            gpe_control,
            width,
            clock: _,
            handled,
            event,
            sci: _,
            deadline: _,
        } = self;
        AcpiPmState {
            status: status.bits(),
            enable: enable.bits(),
            control: control.bits(),
            gpe_status: *gpe_status,
            gpe_enable: *gpe_enable,
            gpe_control: *gpe_control,
            width: *width,
            handled: *handled,
            event: *event,
        }
    }

    pub fn restore(&mut self, state: &AcpiPmState) {
        let AcpiPmState { status, enable, control, gpe_status, gpe_enable, gpe_control, width, handled, event } = state;
        self.status = Pm1::from_bits_truncate(*status);
        self.enable = Pm1::from_bits_truncate(*enable) & Pm1::SCI_SOURCES;
        self.control = Control::from_bits_truncate(*control) & Control::WRITABLE | Control::SCI_EN;
        self.gpe_status = *gpe_status;
        self.gpe_enable = *gpe_enable;
        self.gpe_control = gpe_control & (SWGPE_CTRL | THRM_POL);
        self.width = *width;
        self.handled = *handled;
        self.event = *event;
        self.update_sci();
    }
}

impl PortDevice for AcpiPm {
    fn port_read(&mut self, now: Time, offset: u16, width: Width) -> u32 {
        if offset == PM_TIMER && width == Width::Dword {
            return self.timer(now);
        }
        self.sync(now);
        read_bytes(offset, width, PORTS, |offset| self.read(now, offset))
    }

    fn port_write(&mut self, now: Time, offset: u16, width: Width, value: u32) {
        self.sync(now);
        write_bytes(offset, width, PORTS, value, |offset, value| self.write(offset, value));
        self.update_sci();
    }
}

impl TimedDevice for AcpiPm {
    fn deadline(&self) -> Option<Time> {
        self.deadline
    }

    fn advance(&mut self, now: Time) {
        self.sync(now);
        self.update_sci();
    }
}
