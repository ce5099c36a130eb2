//! The host's console: up to two serial ports, a display and a keyboard, as one.

pub mod framebuffer;
mod i8042;
mod keyboard;
mod ring;
pub mod serial;
mod terminal;
pub mod vga;

use crate::acpi::InterruptOverride;
use crate::apic::{self, vectors};
use crate::cpu::{percpu, relax, trap};
use crate::mm::{self, direct, table::MemoryType};
use crate::smp;
use alloc::{vec, vec::Vec};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicBool, Ordering};
use framebuffer::FrameBuffer;
use i8042::Controller;
use keyboard::Keyboard;
use ring::Ring;
use serial::{NoUart, Ports, SerialConfig, Uart};
use spin::{Mutex, MutexGuard};
use terminal::{Screen as _, Terminal};
use vga::VgaText;
use x86defs::{Attention, Hpa};

/// Writes up to this long are taken whole or not at all.
const WHOLE: usize = 4096;
/// Bytes typed that nobody has read yet.
const RECEIVE_RING: usize = 1024;

/// The keyboard and its controller.
struct HostKeyboard {
    controller: Controller<Ports>,
    keyboard: Keyboard,
    /// It has no interrupt.
    polled: bool,
}

impl HostKeyboard {
    fn service(&mut self) {
        let Self { controller, keyboard, .. } = self;
        let mut input = INPUT.lock();
        // Of what nobody reads, the newest is lost: whoever types sees that nothing happens.
        controller.service(|code| {
            for byte in keyboard.byte(code) {
                input.push(byte);
            }
        });
        announce(&input);
    }
}

/// How well the keyboard goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyboardFound {
    /// There is no keyboard controller.
    None,
    /// By interrupts.
    Interrupts,
    /// There is a controller, but no way for its interrupt: it is looked at when a timer fires.
    Polled,
}

/// What there is to show text on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Display {
    VgaText,
    /// Must have passed [`framebuffer::Layout::check`].
    FrameBuffer(framebuffer::Layout),
}

#[allow(clippy::large_enum_variant, reason = "there is one, and it lives in a static")]
enum Shown {
    Vga(Terminal<VgaText, [u8; vga::CELLS]>),
    FrameBuffer(Terminal<FrameBuffer, Vec<u8>>),
}

impl Shown {
    fn write(&mut self, bytes: &[u8]) {
        match self {
            Self::Vga(t) => t.write(bytes),
            Self::FrameBuffer(t) => t.write(bytes),
        }
    }
}

struct Port {
    uart: Uart<Ports>,
    irq: Option<u8>,
    active: bool,
}

impl Port {
    const fn new() -> Self {
        Self { uart: Uart::new(Ports(0)), irq: None, active: false }
    }
}

/// All zeroes at first, so that the rings take no room in the image: that is why the display is elsewhere.
struct Output {
    ports: [Port; 2],
    set_up: bool,
}

impl Output {
    fn active(&mut self) -> impl Iterator<Item = &mut Port> {
        self.ports.iter_mut().filter(|p| p.active)
    }

    fn add(&mut self, config: &SerialConfig) -> Result<(), NoUart> {
        let port = self.ports.iter_mut().find(|p| !p.active).ok_or(NoUart)?;
        // In place: a UART holds its ring, which is no value for the stack.
        port.uart.replace_bus(Ports(config.io_base));
        port.uart.init(config)?;
        port.irq = config.irq;
        port.active = true;
        Ok(())
    }
}

/// Taken before [`DISPLAY`] and [`INPUT`].
static OUTPUT: Mutex<Output> = Mutex::new(Output { ports: [Port::new(), Port::new()], set_up: false });
static DISPLAY: Mutex<Option<Shown>> = Mutex::new(None);
/// Taken before [`INPUT`].
static KEYBOARD: Mutex<Option<HostKeyboard>> = Mutex::new(None);
static INPUT: Mutex<Ring<RECEIVE_RING>> = Mutex::new(Ring::new());
/// A port has stopped receiving because [`INPUT`] was full.
static INPUT_WAITS: AtomicBool = AtomicBool::new(false);

/// Sets the console up, polled for the time being. Ports that do not answer are returned.
pub fn init(ports: &[SerialConfig], display: Option<Display>) -> ArrayVec<SerialConfig, 2> {
    let mut output = OUTPUT.lock();
    output.set_up = true;
    let missing = ports.iter().filter(|config| output.add(config).is_err()).take(2).copied().collect();
    *DISPLAY.lock() = display.map(|display| match display {
        Display::VgaText => {
            let buffer = mm::map_mmio(Hpa(vga::ADDRESS), vga::SIZE, MemoryType::Uncached);
            // SAFETY: the text buffer is mapped for good, and the console is the only one that uses it.
            Shown::Vga(Terminal::new(unsafe { VgaText::new(buffer) }, [0; vga::CELLS]))
        }
        Display::FrameBuffer(layout) => {
            let pixels = mm::map_mmio(Hpa(layout.address), layout.size(), MemoryType::WriteCombining);
            // SAFETY: as above; the caller has checked the layout.
            let screen = unsafe { FrameBuffer::new(layout, pixels) };
            let cells = vec![0; screen.columns() * screen.rows()];
            Shown::FrameBuffer(Terminal::new(screen, cells))
        }
    });
    missing
}

/// Routes the serial ports' interrupts. Returns the IRQs that cannot be routed; their ports stay polled.
pub fn enable_interrupts(overrides: &[InterruptOverride]) -> ArrayVec<u8, 2> {
    let mut failed = ArrayVec::new();
    trap::set_handler(vectors::SERIAL, interrupt);
    for port in OUTPUT.lock().active() {
        if let Some(irq) = port.irq {
            match apic::route_isa(irq, overrides, vectors::SERIAL) {
                Ok(()) => port.uart.enable_interrupts(),
                Err(_) => failed.push(irq),
            }
        }
    }
    failed
}

/// Takes input from a PS/2 keyboard, or what passes for one, if there is one.
pub fn init_keyboard(overrides: &[InterruptOverride]) -> KeyboardFound {
    const IRQ: u8 = 1;
    let mut slot = KEYBOARD.lock();
    let mut controller = Controller::new();
    let Ok(codes) = controller.init() else { return KeyboardFound::None };
    trap::set_handler(vectors::KEYBOARD, keyboard_interrupt);
    let interrupts = apic::route_isa(IRQ, overrides, vectors::KEYBOARD).is_ok() && controller.enable_interrupts().is_ok();
    *slot = Some(HostKeyboard { controller, keyboard: Keyboard::new(codes), polled: !interrupts });
    if interrupts { KeyboardFound::Interrupts } else { KeyboardFound::Polled }
}

fn keyboard_interrupt() {
    if let Some(keyboard) = KEYBOARD.lock().as_mut() {
        keyboard.service();
    }
    apic::end_of_interrupt();
}

fn service(output: &mut Output, only_polled: bool) {
    let mut input = INPUT.lock();
    for port in output.active().filter(|p| !only_polled || p.uart.polled()) {
        port.uart.service(&mut input);
        INPUT_WAITS.fetch_or(port.uart.paused(), Ordering::Relaxed);
    }
    announce(&input);
}

/// Tells CPU 0, which reads what was typed, that there is something.
fn announce(input: &Ring<RECEIVE_RING>) {
    if input.is_empty() {
        return;
    }
    let cpu = percpu::current();
    if cpu.number() == 0 {
        cpu.call_attention(Attention::OTHER);
    } else {
        smp::kick(0);
    }
}

fn interrupt() {
    service(&mut OUTPUT.lock(), false);
    apic::end_of_interrupt();
}

/// Serves what has no interrupt. Called on every timer interrupt.
pub fn poll() {
    if let Some(mut output) = OUTPUT.try_lock() {
        service(&mut output, true);
    }
    if let Some(mut slot) = KEYBOARD.try_lock()
        && let Some(keyboard) = slot.as_mut().filter(|keyboard| keyboard.polled)
    {
        keyboard.service();
    }
}

/// Writes without waiting; returns how many bytes were taken. Up to 4 KiB are taken whole or not at all.
pub fn write(bytes: &[u8]) -> usize {
    write_to(&mut OUTPUT.lock(), bytes)
}

fn write_to(output: &mut Output, bytes: &[u8]) -> usize {
    let room = output.active().map(|p| p.uart.room()).min().unwrap_or(usize::MAX);
    let taken = match bytes.len() {
        len if len <= room => len,
        0..=WHOLE => 0,
        _ => room,
    };
    for port in output.active() {
        port.uart.send(&bytes[..taken]);
    }
    if let Some(display) = DISPLAY.lock().as_mut() {
        display.write(&bytes[..taken]);
    }
    taken
}

/// Writes all of it. Waits for the serial line only if 64 KiB are waiting to be sent already, and not for ever.
pub fn write_all(bytes: &[u8]) {
    let mut output = OUTPUT.lock();
    for part in bytes.chunks(WHOLE) {
        for port in output.active() {
            port.uart.wait_for_room(part.len());
        }
        write_to(&mut output, part);
    }
}

/// Writes and waits until it is out, whoever may hold the console: for a crash, and before the console is set up (then on the first
/// serial port and in VGA text).
pub fn write_sync(bytes: &[u8]) {
    let mut output = seize();
    if !output.set_up {
        output.set_up = true;
        let _ = output.add(&SerialConfig::DEFAULT);
        // SAFETY: the early tables map the first 4 GiB; on a machine without VGA the bytes go nowhere.
        let screen = unsafe { VgaText::new(direct::to_virt(Hpa(vga::ADDRESS))) };
        *DISPLAY.lock() = Some(Shown::Vga(Terminal::new(screen, [0; vga::CELLS])));
    }
    for part in bytes.chunks(WHOLE) {
        for port in output.active() {
            port.uart.wait_for_room(part.len());
        }
        write_to(&mut output, part);
    }
    for port in output.active() {
        port.uart.drain();
    }
}

/// Waits until all output is on the line, or the line does not move.
pub fn flush() {
    for port in seize().active() {
        port.uart.drain();
    }
}

/// The console's lock; if whoever holds it does not give it back in time, it is taken away: that CPU has crashed.
fn seize() -> MutexGuard<'static, Output> {
    for _ in 0..10_000_000 {
        if let Some(output) = OUTPUT.try_lock() {
            return output;
        }
        relax();
    }
    // SAFETY: the holder is this CPU, further down its stack, or one that has been stopped. The worst that can come of it is garbled text.
    unsafe {
        DISPLAY.force_unlock();
        OUTPUT.force_unlock();
    }
    OUTPUT.lock()
}

/// Takes one byte typed on a serial console or on the keyboard.
pub fn read() -> Option<u8> {
    let byte = INPUT.lock().pop();
    if byte.is_none() && INPUT_WAITS.swap(false, Ordering::Relaxed) {
        let mut output = OUTPUT.lock();
        for port in output.active() {
            port.uart.resume();
        }
    }
    byte
}
