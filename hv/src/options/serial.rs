//! `com1=` and `com2=`: `BAUD[/BASE-BAUD][,DPS[,IO-BASE[,IRQ]]]`, then or instead `name=value` pairs, comma-separated.

use super::{Refusal, number};

/// How a serial port is to be set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SerialOptions {
    pub baud: Baud,
    /// Input clock of the UART in Hz: 16 times the highest baud rate.
    pub clock_hz: u32,
    /// 5..=8
    pub data_bits: u8,
    pub parity: Parity,
    /// 1 or 2
    pub stop_bits: u8,
    /// First of its eight ports.
    pub io_base: u16,
    /// ISA IRQ, or `None` to poll.
    pub irq: Option<u8>,
}

/// The line's speed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Baud {
    /// As the firmware or the boot loader left it.
    Auto,
    /// Bits per second, 1 up to a sixteenth of the clock.
    Fixed(u32),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parity {
    None,
    Odd,
    Even,
    Mark,
    Space,
}

impl Parity {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "n" => Self::None,
            "o" => Self::Odd,
            "e" => Self::Even,
            "m" => Self::Mark,
            "s" => Self::Space,
            _ => return None,
        })
    }
}

/// The PC's UART clock.
const CLOCK_HZ: u32 = 1_843_200;

const EXPECTED: Refusal = Refusal::Bad("BAUD[/BASE-BAUD][,DPS[,IO-BASE[,IRQ]]] such as 115200,8n1,0x3f8,4");

impl SerialOptions {
    /// A port with the usual settings: 115200 baud, 8n1.
    #[must_use]
    pub const fn at(io_base: u16, irq: u8) -> Self {
        Self {
            baud: Baud::Fixed(115_200),
            clock_hz: CLOCK_HZ,
            data_bits: 8,
            parity: Parity::None,
            stop_bits: 1,
            io_base,
            irq: Some(irq),
        }
    }

    /// Divisor latch value for the speed, 1..=65535; `None` to leave it alone.
    #[must_use]
    pub fn divisor(&self) -> Option<u16> {
        match self.baud {
            Baud::Auto => None,
            Baud::Fixed(baud) => {
                let divisor = self.clock_hz / 16 / baud.max(1);
                Some(u16::try_from(divisor).unwrap_or(u16::MAX).max(1))
            }
        }
    }

    /// Changes what `text` gives; on an error nothing.
    pub(super) fn set(&mut self, text: &str) -> Result<(), Refusal> {
        let mut new = *self;
        if text.is_empty() {
            return Err(EXPECTED);
        }
        let mut position = 0;
        for part in text.split(',') {
            match part.split_once('=') {
                Some((name, value)) => new.pair(name, value, part)?,
                None => {
                    new.positional(position, part)?;
                    position += 1;
                }
            }
        }
        if let Baud::Fixed(baud) = new.baud
            && baud > new.clock_hz / 16
        {
            return Err(Refusal::Bad("a baud rate no higher than the base baud rate"));
        }
        *self = new;
        Ok(())
    }

    fn positional(&mut self, position: usize, part: &str) -> Result<(), Refusal> {
        match (position, part) {
            // An empty position leaves the default.
            (0..=3, "") => Ok(()),
            (0, _) => match part.split_once('/') {
                Some((baud, base)) => {
                    self.clock(base)?;
                    self.baud(baud)
                }
                None => self.baud(part),
            },
            (1, _) => self.frame(part),
            (2, "pci" | "amt") | (3, "msi") => Err(Refusal::Unsupported(part.into())),
            (2, _) => self.io_base(part),
            (3, _) => self.irq(part),
            // Bus:device.function of a PCI card and of its bridge.
            (4 | 5, _) if part.contains([':', '.']) => Err(Refusal::Unsupported(part.into())),
            _ => Err(EXPECTED),
        }
    }

    fn pair(&mut self, name: &str, value: &str, part: &str) -> Result<(), Refusal> {
        match name {
            "baud" => self.baud(value),
            "clock-hz" => self.clock(value),
            "data-bits" => self.data_bits(value),
            "io-base" => self.io_base(value),
            "irq" => self.irq(value),
            "parity" => Parity::parse(value).map(|p| self.parity = p).ok_or(EXPECTED),
            "stop-bits" => self.stop_bits(value),
            "bridge" | "dev" | "port" | "reg-shift" | "reg-width" => Err(Refusal::Unsupported(part.into())),
            _ => Err(EXPECTED),
        }
    }

    fn baud(&mut self, text: &str) -> Result<(), Refusal> {
        self.baud = if text == "auto" {
            Baud::Auto
        } else {
            let baud = number(text).and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0);
            Baud::Fixed(baud.ok_or(EXPECTED)?)
        };
        Ok(())
    }

    /// The base baud rate, a sixteenth of the clock.
    fn clock(&mut self, text: &str) -> Result<(), Refusal> {
        let base = number(text).filter(|&n| n > 0).ok_or(EXPECTED)?;
        self.clock_hz = base.checked_mul(16).and_then(|n| u32::try_from(n).ok()).ok_or(EXPECTED)?;
        Ok(())
    }

    fn frame(&mut self, text: &str) -> Result<(), Refusal> {
        // Sliced by characters, since the text may be anything.
        let mut chars = text.char_indices().map(|(i, c)| &text[i..i + c.len_utf8()]);
        let (Some(data), Some(parity), Some(stop), None) = (chars.next(), chars.next(), chars.next(), chars.next()) else {
            return Err(EXPECTED);
        };
        self.data_bits(data)?;
        self.parity = Parity::parse(parity).ok_or(EXPECTED)?;
        self.stop_bits(stop)
    }

    fn data_bits(&mut self, text: &str) -> Result<(), Refusal> {
        self.data_bits = match text {
            "5" => 5,
            "6" => 6,
            "7" => 7,
            "8" => 8,
            _ => return Err(EXPECTED),
        };
        Ok(())
    }

    fn stop_bits(&mut self, text: &str) -> Result<(), Refusal> {
        self.stop_bits = match text {
            "1" => 1,
            "2" => 2,
            _ => return Err(EXPECTED),
        };
        Ok(())
    }

    fn io_base(&mut self, text: &str) -> Result<(), Refusal> {
        // Eight ports must follow.
        let base = number(text).and_then(|n| u16::try_from(n).ok()).filter(|&n| n != 0 && n <= 0xfff8);
        self.io_base = base.ok_or(Refusal::Bad("an I/O base of 1 to 0xfff8"))?;
        Ok(())
    }

    fn irq(&mut self, text: &str) -> Result<(), Refusal> {
        let irq = number(text).and_then(|n| u8::try_from(n).ok()).filter(|&n| n < 16);
        let irq = irq.ok_or(Refusal::Bad("an IRQ of 1 to 15, or 0 to poll"))?;
        self.irq = (irq != 0).then_some(irq);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> Option<SerialOptions> {
        let mut options = SerialOptions::at(0x3f8, 4);
        options.set(text).is_ok().then_some(options)
    }

    #[test]
    fn positions_pairs_and_gaps() {
        let default = SerialOptions::at(0x3f8, 4);
        assert_eq!(set("115200,8n1"), Some(default));
        assert_eq!(set("auto").map(|o| (o.baud, o.divisor())), Some((Baud::Auto, None)));
        assert_eq!(
            set("9600,7e2,0x2f8,0"),
            Some(SerialOptions {
                baud: Baud::Fixed(9600),
                data_bits: 7,
                parity: Parity::Even,
                stop_bits: 2,
                io_base: 0x2f8,
                irq: None,
                ..default
            })
        );
        assert_eq!(set("57600,,,11"), Some(SerialOptions { baud: Baud::Fixed(57_600), irq: Some(11), ..default }));
        assert_eq!(
            set("baud=19200,parity=o,stop-bits=2,io-base=0x3e8,irq=0xa,data-bits=7"),
            Some(SerialOptions {
                baud: Baud::Fixed(19_200),
                parity: Parity::Odd,
                stop_bits: 2,
                io_base: 0x3e8,
                irq: Some(10),
                data_bits: 7,
                ..default
            })
        );
        assert_eq!(set("115200/460800").and_then(|o| o.divisor()), Some(4));
        assert_eq!(set("9600").and_then(|o| o.divisor()), Some(12));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "fast",
            "0",
            "115200,8x1",
            "115200,8n3",
            "115200,8n12",
            "115200,8n1,0",
            "115200,8n1,0xfff9",
            "115200,8n1,0x3f8,16",
            "460800",
            "115200,8n1,0x3f8,4,5",
            "115200,8n1,0x3f8,4,00:01.0",
            "speed=9600",
            "115200/0",
            "115200/999999999999",
            "9600,äöü",
        ] {
            assert_eq!(set(text), None, "{text}");
        }
    }
}
