//! Self-checking guest kernels: one image with many cases, one of which runs per boot, chosen by `test=NAME` on the command
//! line. It is a kernel of every format that is not Linux's own: multiboot1, multiboot2, PVH, and (made flat by the runner) no format at all. Each case opens with the architectural behaviour that it checks. The verdict leaves by port 0xf4: 0x10 passed, 0x11 failed
//! (the reason is on COM1); some cases end otherwise on purpose (triple fault, reset), which the runner's list says.
#![no_std]
#![no_main]

mod cases;
mod rt;

use rt::{Verdict, exit, println};

/// Called by the entry code in 64-bit mode with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn guest_main(magic: u32, info: u32) -> ! {
    rt::init();
    let boot = rt::BootInfo::new(magic, info);
    let name = boot.option("test").unwrap_or("");
    for (case, run) in cases::ALL {
        if *case == name {
            println!("case {name}");
            run(&boot);
            println!("pass {name}");
            exit(Verdict::Pass);
        }
    }
    println!("no such case: '{name}'");
    exit(Verdict::Fail);
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("FAIL: {info}");
    exit(Verdict::Fail);
}
