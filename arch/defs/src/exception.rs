//! Exceptions that the hypervisor raises in a guest (Intel SDM vol. 3A, 7.3 and table 7-1).

/// Vector numbers of the architectural exceptions.
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
    pub const CP: u8 = 21;
}

/// A hardware exception to raise in a guest, as a fault of the instruction at RIP unless said otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    pub vector: u8,
    /// Present exactly for the vectors that push an error code (in protected and long mode).
    pub error_code: Option<u32>,
    /// For #PF: the faulting linear address, to be put in CR2.
    pub cr2: Option<u64>,
}

impl Exception {
    pub const UD: Self = Self { vector: vector::UD, error_code: None, cr2: None };
    pub const NM: Self = Self { vector: vector::NM, error_code: None, cr2: None };
    pub const DB: Self = Self { vector: vector::DB, error_code: None, cr2: None };
    /// #GP with error code 0, the common case.
    pub const GP: Self = Self::gp(0);

    pub const fn gp(error_code: u32) -> Self {
        Self { vector: vector::GP, error_code: Some(error_code), cr2: None }
    }
    pub const fn ss(error_code: u32) -> Self {
        Self { vector: vector::SS, error_code: Some(error_code), cr2: None }
    }
    pub const fn ts(error_code: u32) -> Self {
        Self { vector: vector::TS, error_code: Some(error_code), cr2: None }
    }
    pub const fn np(error_code: u32) -> Self {
        Self { vector: vector::NP, error_code: Some(error_code), cr2: None }
    }
    pub const fn ac() -> Self {
        Self { vector: vector::AC, error_code: Some(0), cr2: None }
    }
    /// #PF at linear address `address` with the given error code (SDM vol. 3A, 5.7).
    pub const fn pf(address: u64, error_code: u32) -> Self {
        Self { vector: vector::PF, error_code: Some(error_code), cr2: Some(address) }
    }
}
