//! Virtual NMIs without the CPU's help: which are blocked, and how to notice that they no longer are.
//!
//! From the NMI's injection to the end of the next IRET no other is delivered (APM vol. 2, 24593 rev. 3.42, 8.2.3). IRET is intercepted meanwhile; as the
//! intercept comes before the instruction, the IRET itself counts as done when RIP has moved. If an NMI waits for that, the IRET is single-stepped.

/// Whether an NMI can be delivered, as far as earlier NMIs matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum NmiBlocking {
    #[default]
    Open,
    /// An NMI was delivered, and no IRET has been seen since.
    Blocked,
    /// The guest is about to execute the IRET at this RIP.
    AtIret(u64),
}

impl NmiBlocking {
    /// True if an NMI is still being handled by the guest, which is at `rip` now.
    #[must_use]
    pub fn blocks(self, rip: u64) -> bool {
        match self {
            Self::Open => false,
            Self::Blocked => true,
            Self::AtIret(iret) => iret == rip,
        }
    }

    /// The same, without an IRET that is done.
    #[must_use]
    pub fn settled(self, rip: u64) -> Self {
        if self.blocks(rip) { self } else { Self::Open }
    }
}

/// A single step through the guest that it must not notice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// RFLAGS.TF as the guest had set it.
    pub guest_tf: bool,
    /// The instruction is the IRET that unblocks NMIs.
    pub iret: bool,
}

/// DR6.BS: the debug exception comes from a single step.
pub const DR6_BS: u64 = 1 << 14;
/// DR6.B0 to B3: it comes from a breakpoint.
const DR6_BREAKPOINTS: u64 = 0xf;

/// What to do with a debug exception that came while stepping, given DR6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StepResult {
    /// It is ours alone: the guest sees this DR6 and no exception.
    Ours { dr6: u64 },
    /// The guest has its own reason: it sees this DR6, and the exception.
    Guests { dr6: u64 },
}

impl Step {
    #[must_use]
    pub const fn result(self, dr6: u64) -> StepResult {
        if self.guest_tf {
            return StepResult::Guests { dr6 };
        }
        let seen = dr6 & !DR6_BS;
        if dr6 & DR6_BREAKPOINTS != 0 { StepResult::Guests { dr6: seen } } else { StepResult::Ours { dr6: seen } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iret_unblocks_when_it_is_done() {
        assert!(!NmiBlocking::Open.blocks(0x1000));
        assert!(NmiBlocking::Blocked.blocks(0x1000));
        assert!(NmiBlocking::AtIret(0x1000).blocks(0x1000));
        assert!(!NmiBlocking::AtIret(0x1000).blocks(0x2000));
        assert_eq!(NmiBlocking::AtIret(0x1000).settled(0x1000), NmiBlocking::AtIret(0x1000));
        assert_eq!(NmiBlocking::AtIret(0x1000).settled(0x2000), NmiBlocking::Open);
    }

    #[test]
    fn our_step_is_hidden_and_the_guests_is_not() {
        let ours = Step { guest_tf: false, iret: false };
        assert_eq!(ours.result(0xffff_4ff0), StepResult::Ours { dr6: 0xffff_0ff0 });
        assert_eq!(ours.result(0xffff_4ff1), StepResult::Guests { dr6: 0xffff_0ff1 });
        assert_eq!(Step { guest_tf: true, iret: false }.result(0xffff_4ff0), StepResult::Guests { dr6: 0xffff_4ff0 });
    }
}
