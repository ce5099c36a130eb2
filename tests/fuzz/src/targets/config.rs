//! Guest configurations: files that the user writes.

use super::check_message;
use crate::{Source, Target};
use hv::config::{self, MAX_MEMORY_MIB, MAX_NAME, MAX_VCPUS};

/// A configuration is taken as it should be, or refused with reasons.
pub const CONFIG: Target = Target {
    name: "config",
    run: parse,
    seeds: &[
        b"name = \"g\"\nmemory = 512\nkernel = \"vmlinuz\"\n",
        b"name = 'a'\ntype = \"hvm\"\nmemory = 64\nmaxmem = 64\nvcpus = 4\ncpus = [\"0\", \"1-3,^2\", 2]\ncpu_weight = 512\ncap = 50\nkernel = \"k\"\nramdisk = \"r\"\n\
          cmdline = \"console=ttyS0\"\n",
        b"name = \"g\"\nmemory = 1024\nmaxvcpus = 2\ncpus = \"all,^0\"\nkernel = \"k\"\nroot = \"/dev/vda\"\nextra = \"quiet\"\nserial = \"none\"\non_poweroff = \"destroy\"\n\
          on_reboot = \"restart\"\non_crash = \"rename-restart\"\nisa_debug_exit = 0xf4\n",
        b"name = \"c\"\nmemory = 8\nkernel = \"k\"\ncpuid = \"host,sse3=0,tsc-deadline=x,family=0x10,svm_npt=k\"\n",
        b"name = \"x\"\nmemory = 8\nkernel = \"k\"\ncpuid = [\"0x7,0:ebx=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx01,ecx=kkkkkkkkssssssssxxxxxxxxxxxxxxxx\"]\n",
        b"name = \"f\"\nmemory = 8\nkernel = \"k\"\nkernel_format = \"flat\"\nload_address = 0x200000\nentry = 0x200010\n",
    ],
    words: &[
        b"name = ", b"type = ", b"memory = ", b"maxmem = ", b"vcpus = ", b"maxvcpus = ", b"cpus = ", b"cpu_weight = ", b"cap = ", b"kernel = ", b"kernel_format = ", b"load_address = ", b"entry = ", b"ramdisk = ",
        b"cmdline = ", b"root = ", b"extra = ", b"serial = ", b"on_poweroff = ", b"on_reboot = ", b"on_crash = ", b"isa_debug_exit = ", b"vif = ", b"cpuid = ", b"host,", b"=0,", b"0x80000001:", b"edx=", b"\"", b"'",
        b"\"\"\"", b"[", b"]", b"{", b"}", b"\n", b"# ", b"-1", b"0", b"33", b"16777217", b"9223372036854775807", b"1e9", b"true", b"1979-05-27", b"\"pty\"",
        b"\"preserve\"", b"\\u0000", b"\\u001b", b"\xff", b"\"0-255\"", b"\"^0\"", b"a.b = 1", b"[[x]]",
    ],
};

fn parse(source: &mut Source<'_>) {
    match config::parse_bytes("fuzz.cfg", source.rest()) {
        Ok(guest) => {
            assert!((1..=MAX_NAME).contains(&guest.name.len()), "{:?}", guest.name);
            assert!((1..=MAX_VCPUS).contains(&guest.vcpus), "{} vCPUs", guest.vcpus);
            assert!(guest.memory > 0 && guest.memory <= MAX_MEMORY_MIB << 20, "{} bytes", guest.memory);
            assert!(guest.cpu_weight > 0);
            assert!(guest.cap <= 100 * guest.vcpus, "{} %", guest.cap);
            assert!(
                guest.cpus.len() <= guest.vcpus as usize && !guest.cpus.iter().any(|cpus| cpus.is_empty()),
                "{:?}",
                guest.cpus
            );
            guest.warnings.iter().for_each(|warning| check_message(warning));
        }
        Err(errors) => {
            assert!(!errors.is_empty(), "refused without a reason");
            errors.iter().for_each(|error| check_message(error));
        }
    }
}
