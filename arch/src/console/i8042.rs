//! The keyboard controller (Intel UPI-42 in the PC/AT; IBM PS/2 Hardware Interface Technical Reference, 1991, "Keyboard and Auxiliary Device
//! Controller"), as far as a keyboard needs it. A machine may have none, or firmware that plays one for a USB keyboard: nothing here waits for long.

use super::{
    keyboard::ScanCodes,
    serial::{Bus, Ports},
};
use crate::cpu::relax;

/// Data at 0x60, and command and status four ports above.
const DATA: u16 = 0;
const COMMAND: u16 = 4;
const STATUS: u16 = 4;

const OUTPUT_FULL: u8 = 1 << 0;
const INPUT_FULL: u8 = 1 << 1;
/// What is in the output buffer is the mouse's.
const FROM_MOUSE: u8 = 1 << 5;

const READ_CONFIGURATION: u8 = 0x20;
const WRITE_CONFIGURATION: u8 = 0x60;
const DISABLE_MOUSE: u8 = 0xa7;
const DISABLE_KEYBOARD: u8 = 0xad;
const ENABLE_KEYBOARD: u8 = 0xae;

const KEYBOARD_INTERRUPT: u8 = 1 << 0;
const MOUSE_INTERRUPT: u8 = 1 << 1;
const KEYBOARD_CLOCK_OFF: u8 = 1 << 4;
const MOUSE_CLOCK_OFF: u8 = 1 << 5;
const TRANSLATE: u8 = 1 << 6;

/// The keyboard's own command to send what is pressed, and its answer.
const ENABLE_SCANNING: u8 = 0xf4;
const ACKNOWLEDGE: u8 = 0xfa;

/// Looks at the status before giving up. A port read takes about a microsecond, the controller answers within 10 ms or so.
const PATIENCE: u32 = 50_000;
/// Bytes of old input that are thrown away, and bytes that are taken at once.
const MOST: usize = 32;

/// The machine has no keyboard controller, or a broken one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoController;

/// A keyboard controller.
#[derive(Debug)]
pub struct Controller<B> {
    bus: B,
}

impl Controller<Ports> {
    /// The one that every PC has, if it has one.
    #[must_use]
    pub const fn new() -> Self {
        Self { bus: Ports(0x60) }
    }
}

impl<B: Bus> Controller<B> {
    fn wait(&self, bit: u8, set: bool) -> Result<(), NoController> {
        for _ in 0..PATIENCE {
            if (self.bus.read(STATUS) & bit != 0) == set {
                return Ok(());
            }
            relax();
        }
        Err(NoController)
    }

    fn command(&mut self, command: u8) -> Result<(), NoController> {
        self.wait(INPUT_FULL, false)?;
        self.bus.write(COMMAND, command);
        Ok(())
    }

    fn write(&mut self, data: u8) -> Result<(), NoController> {
        self.wait(INPUT_FULL, false)?;
        self.bus.write(DATA, data);
        Ok(())
    }

    fn answer(&mut self) -> Result<u8, NoController> {
        self.wait(OUTPUT_FULL, true)?;
        Ok(self.bus.read(DATA))
    }

    fn configuration(&mut self) -> Result<u8, NoController> {
        self.command(READ_CONFIGURATION)?;
        self.answer()
    }

    fn configure(&mut self, configuration: u8) -> Result<(), NoController> {
        self.command(WRITE_CONFIGURATION)?;
        self.write(configuration)
    }

    /// Sets the controller up, without interrupts. Returns which codes a keyboard's keys will send: also if none is plugged in now.
    ///
    /// # Errors
    /// If there is no controller.
    pub fn init(&mut self) -> Result<ScanCodes, NoController> {
        // What no device answers reads all ones.
        if self.bus.read(STATUS) == 0xff {
            return Err(NoController);
        }
        self.command(DISABLE_KEYBOARD)?;
        self.command(DISABLE_MOUSE)?;
        for _ in 0..MOST {
            if self.bus.read(STATUS) & OUTPUT_FULL == 0 {
                break;
            }
            let _ = self.bus.read(DATA);
        }
        let old = self.configuration()?;
        let wanted = old & !(KEYBOARD_INTERRUPT | MOUSE_INTERRUPT | KEYBOARD_CLOCK_OFF) | MOUSE_CLOCK_OFF | TRANSLATE;
        self.configure(wanted)?;
        let translates = self.configuration()? & TRANSLATE != 0;
        self.command(ENABLE_KEYBOARD)?;
        self.write(ENABLE_SCANNING)?;
        // No keyboard, no answer. One may be plugged in later: then it scans by itself.
        if let Ok(answer) = self.answer()
            && answer != ACKNOWLEDGE
        {
            log::debug!("keyboard: answers {answer:#x} when it is enabled");
        }
        Ok(if translates { ScanCodes::Set1 } else { ScanCodes::Set2 })
    }

    /// Lets the keyboard interrupt (ISA IRQ 1).
    ///
    /// # Errors
    /// If the controller does not answer any more.
    pub fn enable_interrupts(&mut self) -> Result<(), NoController> {
        // The keyboard keeps quiet meanwhile, so that the answer is the controller's.
        self.command(DISABLE_KEYBOARD)?;
        let configuration = self.configuration();
        if let Ok(old) = configuration {
            self.configure(old & !KEYBOARD_CLOCK_OFF | KEYBOARD_INTERRUPT)?;
        }
        self.command(ENABLE_KEYBOARD)?;
        configuration.map(drop)
    }

    /// Gives `take` what the keyboard has sent.
    pub fn service(&mut self, mut take: impl FnMut(u8)) {
        // Bounded: a broken controller must not keep the host here.
        for _ in 0..MOST {
            let status = self.bus.read(STATUS);
            if status & OUTPUT_FULL == 0 || status == 0xff {
                return;
            }
            let byte = self.bus.read(DATA);
            if status & FROM_MOUSE == 0 {
                take(byte);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::RefCell;
    use std::{collections::VecDeque, vec, vec::Vec};

    /// A controller with a keyboard behind it, or without.
    #[derive(Default)]
    struct State {
        configuration: u8,
        /// Cannot be changed.
        fixed: u8,
        output: VecDeque<(u8, bool)>,
        expects: Option<u8>,
        keyboard: bool,
        /// No answer to anything.
        dead: bool,
        written: Vec<u8>,
        reads: u32,
    }

    #[derive(Default)]
    struct Fake(RefCell<State>);

    impl Bus for Fake {
        fn read(&self, register: u16) -> u8 {
            let mut s = self.0.borrow_mut();
            s.reads += 1;
            match register {
                STATUS if s.dead => INPUT_FULL,
                STATUS => s.output.front().map_or(0, |&(_, mouse)| OUTPUT_FULL | if mouse { FROM_MOUSE } else { 0 }),
                _ => s.output.pop_front().map_or(0, |(byte, _)| byte),
            }
        }
        fn write(&mut self, register: u16, value: u8) {
            let s = &mut *self.0.borrow_mut();
            s.written.push(value);
            match (register, s.expects.take()) {
                (COMMAND, _) => match value {
                    READ_CONFIGURATION => s.output.push_back((s.configuration, false)),
                    WRITE_CONFIGURATION => s.expects = Some(value),
                    _ => {}
                },
                (_, Some(_)) => s.configuration = value & !s.fixed | s.configuration & s.fixed,
                (_, None) if s.keyboard => s.output.push_back((ACKNOWLEDGE, false)),
                _ => {}
            }
        }
    }

    fn controller(state: State) -> Controller<Fake> {
        Controller { bus: Fake(RefCell::new(state)) }
    }

    #[test]
    fn a_keyboard_is_set_up_and_interrupts_only_when_asked() {
        let old = [(0x1e, false), (0x55, true)];
        let mut c = controller(State { configuration: 0x33, keyboard: true, output: old.into(), ..State::default() });
        assert_eq!(c.init(), Ok(ScanCodes::Set1));
        let configuration = |c: &Controller<Fake>| c.bus.0.borrow().configuration;
        assert_eq!(configuration(&c), TRANSLATE | MOUSE_CLOCK_OFF);
        assert_eq!(c.bus.0.borrow().output.len(), 0, "old input and the answers are gone");
        assert_eq!(c.enable_interrupts(), Ok(()));
        assert_eq!(configuration(&c), TRANSLATE | MOUSE_CLOCK_OFF | KEYBOARD_INTERRUPT);
        assert_eq!(c.bus.0.borrow().written.last(), Some(&ENABLE_KEYBOARD));
    }

    #[test]
    fn without_a_keyboard_the_controller_is_ready_for_one() {
        assert_eq!(controller(State::default()).init(), Ok(ScanCodes::Set1));
    }

    #[test]
    fn a_controller_that_does_not_translate_passes_the_keyboards_own_codes_on() {
        assert_eq!(controller(State { fixed: TRANSLATE, keyboard: true, ..State::default() }).init(), Ok(ScanCodes::Set2));
    }

    #[test]
    fn nothing_waits_for_ever() {
        let mut dead = controller(State { dead: true, ..State::default() });
        assert_eq!((dead.init(), dead.enable_interrupts()), (Err(NoController), Err(NoController)));
        let reads = dead.bus.0.borrow().reads;
        assert!(reads < 3 * PATIENCE, "{reads}");

        struct Nothing;
        impl Bus for Nothing {
            fn read(&self, _: u16) -> u8 {
                0xff
            }
            fn write(&mut self, _: u16, _: u8) {
                panic!("there is nobody to write to");
            }
        }
        let mut nothing = Controller { bus: Nothing };
        assert_eq!(nothing.init(), Err(NoController));
        nothing.service(|_| panic!("nobody has sent anything"));
    }

    #[test]
    fn the_mouse_is_not_listened_to() {
        let mut c = controller(State { output: [(0x1e, false), (9, true), (0x9e, false)].into(), ..State::default() });
        let mut taken = vec![];
        c.service(|byte| taken.push(byte));
        assert_eq!(taken, [0x1e, 0x9e]);
    }
}
