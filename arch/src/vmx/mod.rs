//! Intel VT-x: capabilities, VMCS, world switch, exit decoding, and the vCPU made of them.

pub mod caps;
pub mod decode;
pub mod instructions;
pub mod msr_bitmap;
pub mod segments;
pub mod spec;
pub mod switch;
