//! The cases, one function each, by area.

mod bench;
mod chips;
mod cpu;
mod ends;
mod events;
mod exits;
mod ipi;
mod irq;
mod modes;
mod neighbour;
mod pc;
mod smp;
mod timers;
mod work;

use crate::rt::BootInfo;

/// A case: what `test=` calls it, and what it does.
type Case = (&'static str, fn(&BootInfo));

/// Every case.
pub const ALL: &[Case] = &[
    ("cpuid-policy", cpu::cpuid_policy),
    ("msr-policy", cpu::msr_policy),
    ("msr-state", cpu::msr_state),
    ("tsc", cpu::tsc),
    ("control-registers", cpu::control_registers),
    ("vector-state", cpu::vector_state),
    ("multiboot-info", cpu::multiboot_info),
    ("port-widths", exits::port_widths),
    ("port-unclaimed", exits::port_unclaimed),
    ("string-io", exits::string_io),
    ("mmio-widths", exits::mmio_widths),
    ("mmio-forms", exits::mmio_forms),
    ("mmio-unbacked", exits::mmio_unbacked),
    ("serial-loopback", exits::serial_loopback),
    ("pci-config", exits::pci_config),
    ("rtc-clock", exits::rtc_clock),
    ("acpi-tables", exits::acpi_tables),
    ("hlt-wake", events::hlt_wake),
    ("sti-shadow", events::sti_shadow),
    ("exceptions", events::exceptions),
    ("exception-during-exit", events::exception_during_exit),
    ("single-step", events::single_step),
    ("nmi", events::nmi),
    ("page-fault", events::page_fault),
    ("real-mode", modes::real_mode),
    ("protected-mode", modes::protected_mode),
    ("user-mode", modes::user_mode),
    ("timer-pit", timers::pit),
    ("timer-pit-irq", timers::pit_irq),
    ("timer-pm", timers::pm_timer),
    ("timer-lapic-oneshot", timers::lapic_one_shot),
    ("timer-lapic-periodic", timers::lapic_periodic),
    ("timer-tsc-deadline", timers::tsc_deadline),
    ("timer-rtc", timers::rtc_periodic),
    ("timers-agree", timers::agree),
    ("pic-delivery", irq::pic_delivery),
    ("ioapic-delivery", irq::ioapic_delivery),
    ("lapic-priority", irq::lapic_priority),
    ("self-ipi", irq::self_ipi),
    ("x2apic", irq::x2apic),
    ("x2apic-delivery", irq::x2apic_delivery),
    ("serial-irq", irq::serial_irq),
    ("pic-modes", chips::pic_modes),
    ("pic-spurious", chips::pic_spurious),
    ("pit-modes", chips::pit_modes),
    ("ioapic-modes", chips::ioapic_modes),
    ("lapic-modes", chips::lapic_modes),
    ("lost-ticks", chips::lost_ticks),
    ("hpet", pc::hpet),
    ("rtc-modes", pc::rtc_modes),
    ("rtc-offset", pc::rtc_offset),
    ("acpi-events", pc::acpi_events),
    ("i8042", pc::i8042),
    ("serial-ports", pc::serial_ports),
    ("pci-ecam", pc::pci_ecam),
    ("pci-device", pc::pci_device),
    ("smp-startup", smp::startup),
    ("smp-startup-32", smp::startup),
    ("smp-init-again", smp::init_again),
    ("smp-init-boot-processor", smp::init_boot_processor),
    ("smp-busy-loop", smp::busy_loop),
    ("smp-ipi", ipi::kinds),
    ("smp-lowest-priority", ipi::lowest_priority),
    ("smp-nmi", ipi::nmi),
    ("smp-hlt-wake", smp::hlt_wake),
    ("smp-tsc", smp::tsc),
    ("smp-shootdown", smp::shootdown),
    ("smp-lock", smp::lock),
    ("smp-topology", smp::topology),
    ("debug-exit", ends::debug_exit),
    ("triple-fault", ends::triple_fault),
    ("reset-cf9", ends::reset_cf9),
    ("reset-8042", ends::reset_8042),
    ("power-off", ends::power_off),
    ("bench", bench::run),
    ("progress", neighbour::progress),
    ("idle", neighbour::idle),
    ("hog", neighbour::hog),
    ("buttons", pc::buttons),
    ("memory-fill", neighbour::memory_fill),
    ("memory-zero", neighbour::memory_zero),
    ("work", work::work),
];
