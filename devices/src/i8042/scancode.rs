//! Keys by USB HID usage, and what a PS/2 keyboard sends for them.
//!
//! Microsoft "Keyboard Scan Code Specification" 1.3a (2000): usages, and codes of sets 1 and 2. IBM PS/2 Hardware Interface
//! Technical Reference, "Keyboards": set 3, and the controller's translation.

/// The longest sequence: Pause.
pub const LONGEST: usize = 8;

pub const BREAK: u8 = 0xf0;
const EXTENDED: u8 = 0xe0;
const E0: u16 = 0xe000;

pub const USAGE_PRINT_SCREEN: u8 = 0x46;
pub const USAGE_PAUSE: u8 = 0x48;

/// Codes of a key: usage, set 2 (with its prefix in the high byte), set 3 (0: it has none).
const KEYS: &[(u8, u16, u8)] = &[
    // A to Z.
    (0x04, 0x1c, 0x1c),
    (0x05, 0x32, 0x32),
    (0x06, 0x21, 0x21),
    (0x07, 0x23, 0x23),
    (0x08, 0x24, 0x24),
    (0x09, 0x2b, 0x2b),
    (0x0a, 0x34, 0x34),
    (0x0b, 0x33, 0x33),
    (0x0c, 0x43, 0x43),
    (0x0d, 0x3b, 0x3b),
    (0x0e, 0x42, 0x42),
    (0x0f, 0x4b, 0x4b),
    (0x10, 0x3a, 0x3a),
    (0x11, 0x31, 0x31),
    (0x12, 0x44, 0x44),
    (0x13, 0x4d, 0x4d),
    (0x14, 0x15, 0x15),
    (0x15, 0x2d, 0x2d),
    (0x16, 0x1b, 0x1b),
    (0x17, 0x2c, 0x2c),
    (0x18, 0x3c, 0x3c),
    (0x19, 0x2a, 0x2a),
    (0x1a, 0x1d, 0x1d),
    (0x1b, 0x22, 0x22),
    (0x1c, 0x35, 0x35),
    (0x1d, 0x1a, 0x1a),
    // 1 to 9, 0.
    (0x1e, 0x16, 0x16),
    (0x1f, 0x1e, 0x1e),
    (0x20, 0x26, 0x26),
    (0x21, 0x25, 0x25),
    (0x22, 0x2e, 0x2e),
    (0x23, 0x36, 0x36),
    (0x24, 0x3d, 0x3d),
    (0x25, 0x3e, 0x3e),
    (0x26, 0x46, 0x46),
    (0x27, 0x45, 0x45),
    // Enter, Escape, Backspace, Tab, Space.
    (0x28, 0x5a, 0x5a),
    (0x29, 0x76, 0x08),
    (0x2a, 0x66, 0x66),
    (0x2b, 0x0d, 0x0d),
    (0x2c, 0x29, 0x29),
    // - = [ ] \ (and the European key beside Enter) ; ' ` , . /
    (0x2d, 0x4e, 0x4e),
    (0x2e, 0x55, 0x55),
    (0x2f, 0x54, 0x54),
    (0x30, 0x5b, 0x5b),
    (0x31, 0x5d, 0x5c),
    (0x32, 0x5d, 0x53),
    (0x33, 0x4c, 0x4c),
    (0x34, 0x52, 0x52),
    (0x35, 0x0e, 0x0e),
    (0x36, 0x41, 0x41),
    (0x37, 0x49, 0x49),
    (0x38, 0x4a, 0x4a),
    // Caps Lock, F1 to F12.
    (0x39, 0x58, 0x14),
    (0x3a, 0x05, 0x07),
    (0x3b, 0x06, 0x0f),
    (0x3c, 0x04, 0x17),
    (0x3d, 0x0c, 0x1f),
    (0x3e, 0x03, 0x27),
    (0x3f, 0x0b, 0x2f),
    (0x40, 0x83, 0x37),
    (0x41, 0x0a, 0x3f),
    (0x42, 0x01, 0x47),
    (0x43, 0x09, 0x4f),
    (0x44, 0x78, 0x56),
    (0x45, 0x07, 0x5e),
    // Print Screen, Scroll Lock, Pause.
    (USAGE_PRINT_SCREEN, E0 | 0x7c, 0x57),
    (0x47, 0x7e, 0x5f),
    (USAGE_PAUSE, 0x77, 0x62),
    // Insert, Home, Page Up, Delete, End, Page Down, Right, Left, Down, Up.
    (0x49, E0 | 0x70, 0x67),
    (0x4a, E0 | 0x6c, 0x6e),
    (0x4b, E0 | 0x7d, 0x6f),
    (0x4c, E0 | 0x71, 0x64),
    (0x4d, E0 | 0x69, 0x65),
    (0x4e, E0 | 0x7a, 0x6d),
    (0x4f, E0 | 0x74, 0x6a),
    (0x50, E0 | 0x6b, 0x61),
    (0x51, E0 | 0x72, 0x60),
    (0x52, E0 | 0x75, 0x63),
    // Keypad: Num Lock / * - + Enter, 1 to 9, 0 .
    (0x53, 0x77, 0x76),
    (0x54, E0 | 0x4a, 0x77),
    (0x55, 0x7c, 0x7e),
    (0x56, 0x7b, 0x84),
    (0x57, 0x79, 0x7c),
    (0x58, E0 | 0x5a, 0x79),
    (0x59, 0x69, 0x69),
    (0x5a, 0x72, 0x72),
    (0x5b, 0x7a, 0x7a),
    (0x5c, 0x6b, 0x6b),
    (0x5d, 0x73, 0x73),
    (0x5e, 0x74, 0x74),
    (0x5f, 0x6c, 0x6c),
    (0x60, 0x75, 0x75),
    (0x61, 0x7d, 0x7d),
    (0x62, 0x70, 0x70),
    (0x63, 0x71, 0x71),
    // The European key beside the left Shift, Application, Power, keypad =, F13 to F24.
    (0x64, 0x61, 0x13),
    (0x65, E0 | 0x2f, 0x8d),
    (0x66, E0 | 0x37, 0),
    (0x67, 0x0f, 0),
    (0x68, 0x08, 0),
    (0x69, 0x10, 0),
    (0x6a, 0x18, 0),
    (0x6b, 0x20, 0),
    (0x6c, 0x28, 0),
    (0x6d, 0x30, 0),
    (0x6e, 0x38, 0),
    (0x6f, 0x40, 0),
    (0x70, 0x48, 0),
    (0x71, 0x50, 0),
    (0x72, 0x57, 0),
    (0x73, 0x5f, 0),
    // Brazilian keypad comma; Japanese \ _, Katakana/Hiragana, Yen, Henkan, Muhenkan.
    (0x85, 0x6d, 0),
    (0x87, 0x51, 0),
    (0x88, 0x13, 0),
    (0x89, 0x6a, 0),
    (0x8a, 0x64, 0),
    (0x8b, 0x67, 0),
    // Left Control, Shift, Alt, GUI; the right ones.
    (0xe0, 0x14, 0x11),
    (0xe1, 0x12, 0x12),
    (0xe2, 0x11, 0x19),
    (0xe3, E0 | 0x1f, 0x8b),
    (0xe4, E0 | 0x14, 0x58),
    (0xe5, 0x59, 0x59),
    (0xe6, E0 | 0x11, 0x39),
    (0xe7, E0 | 0x27, 0x8c),
];

/// The controller's translation of set 2 to set 1. What is not here stays, but for [`BREAK`].
const TRANSLATION: [u8; 0x85] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59, // 00
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b, // 10
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d, // 20
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f, // 30
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61, // 40
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76, // 50
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f, // 60
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54, // 70
    0x80, 0x81, 0x82, 0x41, 0x54, // 80
];

/// Translates a stream of set 2 to set 1. The prefix of a release becomes the high bit of the next code.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Translator {
    pub release: bool,
}

impl Translator {
    /// The byte that goes on, if one does.
    pub fn translate(&mut self, byte: u8) -> Option<u8> {
        if byte == BREAK {
            self.release = true;
            return None;
        }
        let code = TRANSLATION.get(usize::from(byte)).copied().unwrap_or(byte);
        let release = core::mem::take(&mut self.release);
        Some(if release { code | 0x80 } else { code })
    }
}

/// Scan code sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub enum ScanCodeSet {
    Set1 = 1,
    Set2 = 2,
    Set3 = 3,
}

/// A few bytes.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sequence {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Sequence {
    fn of(bytes: &[u8]) -> Self {
        bytes.iter().fold(Self::default(), |sequence, &byte| sequence.then(byte))
    }

    fn then(mut self, byte: u8) -> Self {
        if let Some(slot) = self.bytes.get_mut(self.len) {
            *slot = byte;
            self.len += 1;
        }
        self
    }

    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    fn translated(&self) -> Self {
        let mut translator = Translator::default();
        let bytes = self.bytes().iter().filter_map(|&byte| translator.translate(byte));
        bytes.fold(Self::default(), Self::then)
    }
}

/// Modifiers that change what Print Screen and Pause send.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Held {
    pub control: bool,
    pub shift: bool,
    pub alt: bool,
}

/// What a keyboard that is set to `set` sends when the key with `usage` is pressed or released. Nothing in some cases: Pause
/// has no release of its own. `None` if there is no such key.
pub fn encode(set: ScanCodeSet, usage: u8, pressed: bool, held: Held) -> Option<Sequence> {
    let &(_, set_2, set_3) = KEYS.iter().find(|key| key.0 == usage)?;
    match set {
        ScanCodeSet::Set3 if set_3 == 0 => None,
        ScanCodeSet::Set3 if pressed => Some(Sequence::of(&[set_3])),
        ScanCodeSet::Set3 => Some(Sequence::of(&[BREAK, set_3])),
        ScanCodeSet::Set2 => Some(encode_set_2(usage, set_2, pressed, held)),
        ScanCodeSet::Set1 => Some(encode_set_2(usage, set_2, pressed, held).translated()),
    }
}

/// The set 3 code of the key with `usage`.
pub fn set_3_code(usage: u8) -> Option<u8> {
    KEYS.iter().find(|key| key.0 == usage).map(|key| key.2)
}

fn encode_set_2(usage: u8, code: u16, pressed: bool, held: Held) -> Sequence {
    let [prefix, code] = code.to_be_bytes();
    match (usage, pressed) {
        // Control-Pause is Break; both send everything when pressed.
        (USAGE_PAUSE, true) if held.control => Sequence::of(&[EXTENDED, 0x7e, EXTENDED, BREAK, 0x7e]),
        (USAGE_PAUSE, true) => Sequence::of(&[0xe1, 0x14, 0x77, 0xe1, BREAK, 0x14, BREAK, 0x77]),
        (USAGE_PAUSE, false) => Sequence::default(),
        // Print Screen comes with a Shift of its own, unless Shift or Control is held; with Alt it is SysRq.
        (USAGE_PRINT_SCREEN, true) if held.alt => Sequence::of(&[0x84]),
        (USAGE_PRINT_SCREEN, false) if held.alt => Sequence::of(&[BREAK, 0x84]),
        (USAGE_PRINT_SCREEN, true) if !held.control && !held.shift => Sequence::of(&[EXTENDED, 0x12, EXTENDED, code]),
        (USAGE_PRINT_SCREEN, false) if !held.control && !held.shift => {
            Sequence::of(&[EXTENDED, BREAK, code, EXTENDED, BREAK, 0x12])
        }
        _ => {
            let start = if prefix == 0 { Sequence::default() } else { Sequence::of(&[prefix]) };
            if pressed { start.then(code) } else { start.then(BREAK).then(code) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ScanCodeSet::{Set1, Set2, Set3};
    use std::{collections::BTreeSet, vec::Vec};

    fn codes(set: ScanCodeSet, usage: u8, pressed: bool) -> Vec<u8> {
        encode(set, usage, pressed, Held::default()).unwrap().bytes().to_vec()
    }

    #[test]
    fn keys_in_the_three_sets() {
        // A, F7, right Control, keypad Enter, Up.
        let cases: [(u8, &[u8], &[u8], u8); 5] = [
            (0x04, &[0x1e], &[0x1c], 0x1c),
            (0x40, &[0x41], &[0x83], 0x37),
            (0xe4, &[0xe0, 0x1d], &[0xe0, 0x14], 0x58),
            (0x58, &[0xe0, 0x1c], &[0xe0, 0x5a], 0x79),
            (0x52, &[0xe0, 0x48], &[0xe0, 0x75], 0x63),
        ];
        for (usage, set_1, set_2, set_3) in cases {
            assert_eq!(codes(Set1, usage, true), set_1);
            assert_eq!(codes(Set2, usage, true), set_2);
            assert_eq!(codes(Set3, usage, true), [set_3]);
            let mut released = set_1.to_vec();
            *released.last_mut().unwrap() |= 0x80;
            assert_eq!(codes(Set1, usage, false), released);
            let mut released = set_2.to_vec();
            released.insert(set_2.len() - 1, 0xf0);
            assert_eq!(codes(Set2, usage, false), released);
            assert_eq!(codes(Set3, usage, false), [0xf0, set_3]);
        }
    }

    #[test]
    fn rows_of_set_1_are_in_order() {
        // Set 1 numbers the rows from left to right: a check of both tables against the keyboard's layout.
        let rows: [(u8, &[u8]); 4] = [
            (0x01, &[0x29, 0x1e, 0x1f, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x2d, 0x2e, 0x2a]),
            (0x0f, &[0x2b, 0x14, 0x1a, 0x08, 0x15, 0x17, 0x1c, 0x18, 0x0c, 0x12, 0x13, 0x2f, 0x30, 0x28, 0xe0]),
            (0x1e, &[0x04, 0x16, 0x07, 0x09, 0x0a, 0x0b, 0x0d, 0x0e, 0x0f, 0x33, 0x34, 0x35, 0xe1, 0x31]),
            (0x2c, &[0x1d, 0x1b, 0x06, 0x19, 0x05, 0x11, 0x10, 0x36, 0x37, 0x38, 0xe5, 0x55, 0xe2, 0x2c, 0x39]),
        ];
        for (first, usages) in rows {
            for (code, &usage) in (first..).zip(usages) {
                assert_eq!(codes(Set1, usage, true), [code], "usage {usage:x}");
            }
        }
        let functions = (0x3b..=0x44u8).zip(0x3a..=0x43u8);
        let keypad = (0x47..=0x53u8).zip([0x5f, 0x60, 0x61, 0x56, 0x5c, 0x5d, 0x5e, 0x57, 0x59, 0x5a, 0x5b, 0x62, 0x63]);
        for (code, usage) in functions.chain(keypad).chain([(0x45, 0x53), (0x46, 0x47), (0x57, 0x44), (0x58, 0x45), (0x56, 0x64)])
        {
            assert_eq!(codes(Set1, usage, true), [code], "usage {usage:x}");
        }
    }

    #[test]
    fn no_two_keys_are_alike() {
        // But for the European key, which is the American backslash in sets 1 and 2; Pause has a sequence of its own.
        for set in [Set1, Set2, Set3] {
            let keys: Vec<u8> = KEYS.iter().map(|key| key.0).filter(|usage| *usage != 0x32).collect();
            let keys: Vec<Vec<u8>> =
                keys.into_iter().filter_map(|usage| Some(encode(set, usage, true, Held::default())?.bytes().to_vec())).collect();
            let unique: BTreeSet<_> = keys.iter().collect();
            assert_eq!(unique.len(), keys.len(), "{set:?}");
        }
    }

    #[test]
    fn pause_and_print_screen() {
        assert_eq!(codes(Set1, USAGE_PAUSE, true), [0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]);
        assert!(codes(Set2, USAGE_PAUSE, false).is_empty());
        assert_eq!(codes(Set1, USAGE_PRINT_SCREEN, true), [0xe0, 0x2a, 0xe0, 0x37]);
        assert_eq!(codes(Set1, USAGE_PRINT_SCREEN, false), [0xe0, 0xb7, 0xe0, 0xaa]);
        let with = |held, usage| encode(Set1, usage, true, held).unwrap().bytes().to_vec();
        assert_eq!(with(Held { alt: true, ..Held::default() }, USAGE_PRINT_SCREEN), [0x54]);
        assert_eq!(with(Held { shift: true, ..Held::default() }, USAGE_PRINT_SCREEN), [0xe0, 0x37]);
        assert_eq!(with(Held { control: true, ..Held::default() }, USAGE_PAUSE), [0xe0, 0x46, 0xe0, 0xc6]);
    }
}
