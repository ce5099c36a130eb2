//! From the command line to what `arch` wants to know.

use alloc::{string::String, vec::Vec};
use arch::console::{Display, serial::SerialConfig};
use arch::multiboot::Screen;
use arrayvec::ArrayVec;
use hv::options::{ConsoleDevice, OptionProblem, Options, Parity, SerialOptions};

/// A deliberate crash, for looking at what is printed then: `crash=panic|pf|df|guard`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrashTest {
    /// A Rust panic.
    Panic,
    /// A write to an address that is not mapped.
    PageFault,
    /// A double fault.
    DoubleFault,
    /// A stack overflow into the guard page.
    Guard,
}

/// The command line, taken apart.
pub struct Parsed {
    pub options: Options,
    pub problems: Vec<OptionProblem>,
    pub crash: Option<CrashTest>,
}

/// Reads the command line. `crash=` is the boot binary's own option, for debugging it.
pub fn parse(command_line: &str) -> Parsed {
    let mut crash = None;
    let mut rest = String::new();
    for word in command_line.split_ascii_whitespace() {
        match word {
            "crash=panic" => crash = Some(CrashTest::Panic),
            "crash=pf" => crash = Some(CrashTest::PageFault),
            "crash=df" => crash = Some(CrashTest::DoubleFault),
            "crash=guard" => crash = Some(CrashTest::Guard),
            _ => {
                rest.push_str(word);
                rest.push(' ');
            }
        }
    }
    let (options, problems) = Options::parse(&rest);
    Parsed { options, problems, crash }
}

/// The serial ports that the console uses.
pub fn serial_ports(options: &Options) -> ArrayVec<SerialConfig, 2> {
    options
        .console
        .iter()
        .filter_map(|device| match device {
            ConsoleDevice::Com1 => Some(serial(&options.com1)),
            ConsoleDevice::Com2 => Some(serial(&options.com2)),
            ConsoleDevice::Vga => None,
        })
        .take(2)
        .collect()
}

/// Line-control register: word length, stop bits, parity (PC16550D data sheet, table II).
fn serial(options: &SerialOptions) -> SerialConfig {
    let parity = match options.parity {
        Parity::None => 0,
        Parity::Odd => 0x08,
        Parity::Even => 0x18,
        Parity::Mark => 0x28,
        Parity::Space => 0x38,
    };
    let stop = if options.stop_bits == 2 { 4 } else { 0 };
    SerialConfig {
        io_base: options.io_base,
        irq: options.irq,
        divisor: options.divisor(),
        line_control: options.data_bits.wrapping_sub(5) & 3 | stop | parity,
    }
}

/// Why there is no display although the options ask for one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoDisplay {
    /// The loader says nothing about a screen.
    Unknown,
    /// It is of a kind that Bulkhead cannot use, or described by absurd numbers.
    Unusable(Screen),
}

/// The display, if the console uses one.
pub fn display(options: &Options, screen: Option<Screen>) -> Result<Option<Display>, NoDisplay> {
    if !options.console.contains(&ConsoleDevice::Vga) {
        return Ok(None);
    }
    match screen {
        None => Err(NoDisplay::Unknown),
        Some(Screen::Text) => Ok(Some(Display::VgaText)),
        Some(Screen::Direct(layout)) if layout.check().is_ok() => Ok(Some(Display::FrameBuffer(layout))),
        Some(screen) => Err(NoDisplay::Unusable(screen)),
    }
}
