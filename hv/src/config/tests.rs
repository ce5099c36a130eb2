use super::*;
use crate::loader::{LoadError, NotAKernel};
use proptest::prelude::*;
use std::{format, string::ToString, vec};
use x86defs::CreateError;

const GOOD: &str = "name = \"a\"\nmemory = 256\nkernel = \"vmlinuz\"\n";

fn ports<const N: usize>(first: [Serial; N]) -> [Serial; SERIAL_PORTS] {
    let mut ports = [Serial::None; SERIAL_PORTS];
    ports[..N].copy_from_slice(&first);
    ports
}

fn good(more: &str) -> GuestConfig {
    parse("a.cfg", &format!("{GOOD}{more}")).unwrap_or_else(|e| panic!("{more}: {e:?}"))
}

/// The one error of a text.
fn error(text: &str) -> String {
    let errors = parse("a.cfg", text).expect_err(text);
    assert_eq!(errors.len(), 1, "{text}: {errors:?}");
    errors[0].to_string()
}

#[test]
fn an_xl_configuration_as_people_write_it() {
    let text = r#"
# A Debian guest
name    = 'debian-12'
type    = "hvm"
memory  = 512
maxmem  = 512
vcpus   = 1
cpus    = "0-3,^2"
cpu_weight = 512
cap     = 50
kernel  = "/boot/vmlinuz"
ramdisk = "/boot/initrd.img"    # from the host
extra   = "console=ttyS0 quiet"
root    = "/dev/vda1 ro"
serial  = [ "pty" ]
on_poweroff = "destroy"
on_reboot   = "restart"
on_crash    = "preserve"
isa_debug_exit = 0xf4
"#;
    let config = parse("debian.cfg", text).unwrap();
    assert_eq!((config.name.as_str(), config.memory, config.vcpus), ("debian-12", 512 << 20, 1));
    assert_eq!(config.cpus, [CpuMask::from_iter([0, 1, 3])]);
    assert_eq!((config.cpu_weight, config.cap), (512, 50));
    assert_eq!((config.kernel.as_str(), config.ramdisk.as_deref()), ("/boot/vmlinuz", Some("/boot/initrd.img")));
    assert_eq!(config.cmdline, "root=/dev/vda1 ro console=ttyS0 quiet");
    assert_eq!((config.serial, config.isa_debug_exit), (ports([Serial::Pty]), Some(0xf4)));
    assert_eq!((config.on_poweroff, config.on_reboot, config.on_crash), (Action::Destroy, Action::Restart, Action::Preserve));
    assert_eq!(config.warnings, []);
}

#[test]
fn defaults_are_xls() {
    let config = good("");
    assert_eq!((config.on_poweroff, config.on_reboot, config.on_crash), (Action::Destroy, Action::Restart, Action::Destroy));
    assert_eq!((config.vcpus, config.cmdline.as_str(), config.ramdisk.as_deref()), (1, "", None));
    assert_eq!((config.serial, config.isa_debug_exit), (ports([Serial::Pty]), None));
    assert_eq!((config.hpet, config.missed_ticks), (true, MissedTicks::Deliver));
    assert_eq!((config.localtime, config.rtc_offset), (false, 0));
    assert_eq!((config.cpus, config.cpu_weight, config.cap), (vec![CpuMask::ALL], 256, 0));
}

/// The masks that a value of `cpus` gives to so many vCPUs, and what is remarked.
fn pins(value: &str, vcpus: u32) -> (Vec<String>, Option<String>) {
    let text = format!("cpus = {value}");
    let table = DeTable::parse(&text).unwrap();
    let mut values = [const { None }; Key::ALL.len()];
    values[Key::Cpus as usize] = table.get_ref().get("cpus");
    let mut reader = Reader { file: "a.cfg", lines: [0; Key::ALL.len()], values, errors: Vec::new() };
    let (masks, remark) = reader.cpus(vcpus);
    assert_eq!(reader.errors, [], "{value}");
    (masks.unwrap().iter().map(ToString::to_string).collect(), remark.map(|r| r.to_string()))
}

#[test]
fn cpus_for_all_vcpus_or_for_each() {
    assert_eq!(pins("\"0-3,^2\"", 2).0, ["0-1,3", "0-1,3"]);
    assert_eq!(pins("3", 2).0, ["3", "3"]);
    assert_eq!(pins("\"all\"", 1).0, ["0-255"]);
    assert_eq!(pins("[\"2\", \"3-4\"]", 2).0, ["2", "3-4"]);
    assert_eq!(pins("[5, \"6\"]", 3).0, ["5", "6", "0-255"]);
    assert_eq!(pins("[]", 1), (vec!["0-255".into()], None));
    let remark = "a.cfg:1: cpus: a list for 3 vCPUs, of which there are 1; the others are ignored";
    assert_eq!(pins("[1, 2, 3]", 1), (vec!["1".into()], Some(remark.into())));
    assert_eq!(good("cpus = [0, 1]").warnings.len(), 1);
}

#[test]
fn command_line_is_composed_as_xl_does() {
    assert_eq!(good("root = \"/dev/sda\"").cmdline, "root=/dev/sda");
    assert_eq!(good("extra = \"quiet\"").cmdline, "quiet");
    let config = good("extra = \"quiet\"\ncmdline = \"console=ttyS0\"");
    assert_eq!(config.cmdline, "console=ttyS0");
    let warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings, ["a.cfg:4: extra: ignored, because cmdline is given"]);
}

#[test]
fn clocks_in_every_form() {
    for (text, hpet) in [("hpet = 0", false), ("hpet = false", false), ("hpet = \"1\"", true), ("hpet = true", true)] {
        assert_eq!(good(text).hpet, hpet, "{text}");
    }
    for (text, missed) in [
        ("timer_mode = 1", MissedTicks::Deliver),
        ("timer_mode = \"no_delay_for_missed_ticks\"", MissedTicks::Deliver),
        ("timer_mode = \"3\"", MissedTicks::Merge),
        ("timer_mode = \"no_missed_ticks_pending\"", MissedTicks::Merge),
        ("timer_mode = \"one_missed_tick_pending\"", MissedTicks::Merge),
    ] {
        assert_eq!(good(text).missed_ticks, missed, "{text}");
    }
    for (text, mode) in [
        ("", TscMode::Native),
        ("tsc_mode = \"default\"", TscMode::Native),
        ("tsc_mode = 2", TscMode::Native),
        ("tsc_mode = \"native\"", TscMode::Native),
        ("tsc_mode = \"always_emulate\"", TscMode::Emulated),
        ("tsc_mode = \"1\"", TscMode::Emulated),
    ] {
        assert_eq!(good(text).tsc_mode, mode, "{text}");
    }
    assert_eq!(good("rtc_timeoffset = -3600").rtc_offset, -3600);
    assert_eq!(good("rtc_timeoffset = \"7200\"\nlocaltime = 1").rtc_offset, 7200);
    assert!(good("localtime = 1").localtime);
}

#[test]
fn kernel_formats() {
    for (value, format) in [
        ("auto", Format::Auto),
        ("linux", Format::Linux),
        ("multiboot1", Format::Multiboot1),
        ("multiboot2", Format::Multiboot2),
        ("pvh", Format::Pvh),
        ("flat", Format::Flat { address: 0x10_0000, entry: 0x10_0000 }),
    ] {
        assert_eq!(good(&format!("kernel_format = \"{value}\"")).kernel_format, format);
    }
    assert_eq!(good("").kernel_format, Format::Auto);
    let flat = |more: &str| good(&format!("kernel_format = \"flat\"\n{more}")).kernel_format;
    assert_eq!(flat("load_address = 0x8000"), Format::Flat { address: 0x8000, entry: 0x8000 });
    assert_eq!(flat("entry = \"0x100010\""), Format::Flat { address: 0x10_0000, entry: 0x10_0010 });
    assert_eq!(flat("load_address = 4\nentry = 6"), Format::Flat { address: 4, entry: 6 });
}

#[test]
fn serial_in_every_form() {
    use Serial::{Log, None, Null, Pty};
    assert_eq!(good("serial = \"none\"").serial, ports([]));
    assert_eq!(good("serial = []").serial, ports([]));
    assert_eq!(good("serial = [\"pty\", \"none\"]").serial, ports([Pty]));
    assert_eq!(good("serial = [\"null\", \"pty\", \"none\", \"log\", \"log\"]").serial, [Null, Pty, None, Log, Log]);
}

#[test]
fn numbers_may_stand_in_quotes_as_for_xl() {
    assert_eq!(good("isa_debug_exit = \"0xf4\"").isa_debug_exit, Some(0xf4));
    assert_eq!(good("isa_debug_exit = \"0364\"").isa_debug_exit, Some(0xf4));
    assert_eq!(good("isa_debug_exit = \"0\"").isa_debug_exit, Some(0));
}

#[test]
fn vcpus_up_to_the_limit() {
    assert_eq!(good("vcpus = 32").vcpus, 32);
    assert_eq!(good("vcpus = 4\nmaxvcpus = 4").vcpus, 4);
    assert_eq!(good("maxvcpus = 1").vcpus, 1);
}

#[test]
fn every_bad_value_is_refused_with_its_line() {
    for (more, text) in [
        ("type = \"pv\"", "type: \"pv\" is known to xl, not supported yet"),
        ("type = \"xen\"", "type: bad value \"xen\", expected \"hvm\""),
        ("type = 1", "type: must be a string, not a number"),
        (
            "kernel_format = \"elf\"",
            "kernel_format: bad value \"elf\", expected \"auto\", \"linux\", \"multiboot1\", \"multiboot2\", \"pvh\" or \"flat\"",
        ),
        ("load_address = 4096", "load_address: only for kernel_format = \"flat\": other kernels say it themselves"),
        ("entry = 4096", "entry: only for kernel_format = \"flat\": other kernels say it themselves"),
        ("entry = 4294967296\nkernel_format = \"flat\"", "entry: 4294967296 is not a whole number of 0 to 4294967295"),
        ("maxmem = 512", "maxmem: 512 MiB is not memory's 256 MiB: ballooning is not supported yet"),
        ("maxmem = -1", "maxmem: -1 is not a whole number of 1 to 16777216"),
        ("vcpus = 0", "vcpus: 0 is not a whole number of 1 to 4294967295"),
        ("vcpus = 33", "vcpus: 33 vCPUs: more than 32 are not supported"),
        ("maxvcpus = 4", "maxvcpus: 4 is not vcpus' 1: adding vCPUs to a running guest is not supported yet"),
        ("maxvcpus = 0", "maxvcpus: 0 is not a whole number of 1 to 4294967295"),
        ("vcpus = 1.5", "vcpus: 1.5 is not a whole number of 1 to 4294967295"),
        ("vcpus = \"many\"", "vcpus: \"many\" is not a whole number of 1 to 4294967295"),
        ("vcpus = true", "vcpus: must be a whole number, not true or false"),
        ("vcpus = 99999999999999999999999", "vcpus: 99999999999999999999999 is not a whole number of 1 to 4294967295"),
        ("cpus = \"0-3,^9-\"", "cpus: \"0-3,^9-\": expected CPUs such as all or 0-3,5,^2"),
        ("cpus = \"3-1\"", "cpus: \"3-1\": 3-1 ends before it starts"),
        ("cpus = \"^1\"", "cpus: \"^1\": no CPU is left"),
        ("cpus = 256", "cpus: \"256\": CPU 256 is beyond 255, the last one possible"),
        ("cpus = \"nodes:0\"", "cpus: \"nodes:0\": NUMA nodes are known to xl, not supported yet"),
        ("cpus = true", "cpus: must be a string such as \"0-3,^2\", or a list of such, not true or false"),
        ("cpus = [[0]]", "cpus: must be a string such as \"0-3,^2\", or a list of such, not a list"),
        ("cpu_weight = 0", "cpu_weight: 0 is not a whole number of 1 to 65535"),
        ("cpu_weight = 65536", "cpu_weight: 65536 is not a whole number of 1 to 65535"),
        ("cap = 101", "cap: 101 is not a whole number of 0 to 100"),
        ("cap = -1", "cap: -1 is not a whole number of 0 to 100"),
        ("cpus_soft = \"0\"", "cpus_soft: known to xl, not supported yet"),
        ("ramdisk = \"\"", "ramdisk: must not be empty"),
        ("ramdisk = [\"a\"]", "ramdisk: must be a string, not a list"),
        ("cmdline = \"a\\u0000b\"", "cmdline: must not contain a NUL character"),
        ("cmdline = 5", "cmdline: must be a string, not a number"),
        ("serial = \"tcp:localhost:99\"", "serial: \"tcp:localhost:99\" is known to xl, not supported yet"),
        ("serial = \"com1\"", "serial: bad value \"com1\", expected \"pty\", \"log\", \"null\" or \"none\""),
        ("serial = [\"pty\", \"pty\"]", "serial: more than one \"pty\" is not supported yet"),
        ("serial = [\"log\",\"log\",\"log\",\"log\",\"log\",\"log\"]", "serial: 6 serial ports: more than 5 are not supported"),
        ("hpet = 2", "hpet: 2 is not a whole number of 0 to 1"),
        ("timer_mode = \"delay_for_missed_ticks\"", "timer_mode: \"delay_for_missed_ticks\" is known to xl, not supported yet"),
        ("timer_mode = 0", "timer_mode: \"delay_for_missed_ticks\" is known to xl, not supported yet"),
        ("tsc_mode = \"native_paravirt\"", "tsc_mode: \"native_paravirt\" is known to xl, not supported yet"),
        ("tsc_mode = 3", "tsc_mode: \"native_paravirt\" is known to xl, not supported yet"),
        ("tsc_mode = 4", "tsc_mode: 4 is not a whole number of 0 to 3"),
        ("tsc_mode = \"fast\"", "tsc_mode: bad value \"fast\", expected \"default\", \"always_emulate\" or \"native\""),
        ("timer_mode = 4", "timer_mode: 4 is not a whole number of 0 to 3"),
        ("rtc_timeoffset = -99999999999", "rtc_timeoffset: -99999999999 is not a whole number of 0 to 2147483647"),
        ("serial = [1]", "serial: must be a list of strings, not a list of other values"),
        ("serial = 1", "serial: must be a string or a list of strings, not a number"),
        ("on_crash = \"coredump-destroy\"", "on_crash: \"coredump-destroy\" is known to xl, not supported yet"),
        ("on_reboot = \"soft-reset\"", "on_reboot: \"soft-reset\" is known to xl, not supported yet"),
        (
            "on_poweroff = \"halt\"",
            "on_poweroff: bad value \"halt\", expected \"destroy\", \"restart\", \"rename-restart\" or \"preserve\"",
        ),
        ("isa_debug_exit = 0x10000", "isa_debug_exit: 0x10000 is not a whole number of 0 to 65535"),
        ("disk = [ \"phy:/dev/sda,xvda,w\" ]", "disk: known to xl, not supported yet"),
        ("[vnc]\nx = 1", "vnc: known to xl, not supported yet"),
        ("builder = \"hvm\"", "builder: obsolete, use type instead"),
        ("kernal = \"x\"", "kernal: unknown key; did you mean kernel?"),
        ("frobnicate = 1", "frobnicate: unknown key"),
        ("\"a\\nb\" = 1", "a\\nb: unknown key"),
        ("vcpus = 1.0.0", "vcpus: not valid TOML: "),
        ("memory = 512", "memory: given twice"),
        ("acpi=1; apic=1", "acpi: not valid TOML: one assignment a line, without \";\""),
        ("on_crash = \"a;b\" ;", "on_crash: not valid TOML: one assignment a line, without \";\""),
        ("disk += [ \"x\" ]", "disk: not valid TOML: \"+=\" is not supported, give all of the list at once"),
        ("vcpus = 01", "vcpus: not valid TOML: write an octal number as 0o17, a decimal one without leading zeros"),
        ("ramdisk = /boot/initrd", "ramdisk: not valid TOML: a value that is no number needs quotes"),
        ("on_crash = destroy", "on_crash: not valid TOML: a value that is no number needs quotes"),
        ("ramdisk = \"initrd", "ramdisk: not valid TOML: "),
        ("extra = 'one\n", "extra: not valid TOML: "),
        ("????", "-: not valid TOML: "),
    ] {
        let message = error(&format!("{GOOD}{more}"));
        let expected = format!("a.cfg:4: {text}");
        if text.ends_with(": ") {
            assert!(message.starts_with(&expected), "{message}");
        } else {
            assert_eq!(message, expected);
        }
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn mandatory_keys() {
    assert_eq!(error("memory = 1\nkernel = \"k\""), "a.cfg:1: name: missing, it must be given");
    assert_eq!(error("name = \"a\"\nkernel = \"k\""), "a.cfg:1: memory: missing, it must be given");
    assert_eq!(error("name = \"a\"\nmemory = 1"), "a.cfg:1: kernel: missing, it must be given");
    assert_eq!(error("memory = 0\nname = \"a\"\nkernel = \"k\""), "a.cfg:1: memory: 0 is not a whole number of 1 to 16777216");
    let bad_name = error("kernel = \"k\"\nmemory = 1\nname = \"a b\"");
    assert_eq!(bad_name, "a.cfg:3: name: bad value \"a b\", expected 1 to 64 letters, digits and . _ + @ -");
    assert!(parse("a.cfg", &format!("name = \"{}\"\nmemory = 1\nkernel = \"k\"", "x".repeat(65))).is_err());
}

#[test]
fn all_errors_come_in_the_order_of_lines() {
    let errors = parse("a.cfg", "vif = []\nname = 1\nmemroy = 5\nkernel = \"k\"").unwrap_err();
    let keys: Vec<_> = errors.iter().map(|e| (e.line, e.key.as_str())).collect();
    assert_eq!(keys, [(1, "vif"), (1, "memory"), (2, "name"), (3, "memroy")]);
}

#[test]
fn a_file_that_is_no_text() {
    let mut bytes = GOOD.as_bytes().to_vec();
    assert!(parse_bytes("a.cfg", &bytes).is_ok());
    bytes.extend(*b"extra = \"\xff\"");
    assert_eq!(parse_bytes("a.cfg", &bytes).unwrap_err()[0].to_string(), "a.cfg:4: -: not UTF-8 text");
    let long = vec![b'#'; MAX_BYTES + 1];
    assert_eq!(
        parse_bytes("a.cfg", &long).unwrap_err()[0].to_string(),
        "a.cfg:1: -: the file has 65537 bytes, at most 65536 are read"
    );
}

#[test]
fn later_refusals_know_their_line() {
    let config = good("vcpus = 1");
    for (key, reason, text) in [
        (Key::Kernel, Reason::NoSuchModule { name: "vmlinuz".into() }, "a.cfg:3: kernel: no boot module is named \"vmlinuz\""),
        (Key::Kernel, Reason::Load(LoadError::NotAKernel(NotAKernel::Empty)), "a.cfg:3: kernel: not a kernel: the file is empty"),
        (
            Key::Memory,
            Reason::Create(CreateError::OutOfMemory { wanted: 256 << 20, free: 100 << 20 }),
            "a.cfg:2: memory: more memory than there is: 256 MiB wanted, 100 MiB free",
        ),
        (
            Key::Cpus,
            Reason::NoSuchCpus { cpus: CpuMask::from_iter([8, 9]), host: 4 },
            "a.cfg:1: cpus: no CPU of 8-9: the host has 0-3",
        ),
        (Key::Name, Reason::NameInUse, "a.cfg:1: name: another guest has this name"),
        (Key::Serial, Reason::Missing, "a.cfg:1: serial: missing, it must be given"),
    ] {
        assert_eq!(config.error(key, reason).to_string(), text);
    }
    let too_long = Reason::Load(LoadError::CommandLineTooLong { length: 3000, limit: 2047 });
    let config = good("root = \"x\"\nextra = \"y\"");
    assert_eq!(
        config.error(Key::Cmdline, too_long).to_string(),
        "a.cfg:5: extra: the command line is too long: 3000 bytes, this kernel takes 2047"
    );
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = parse("p.cfg", &text);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_bytes("p.cfg", &bytes);
    }

    /// Lines that look like a configuration: each key's value is anything.
    #[test]
    fn no_value_panics(key in "name|memory|maxmem|vcpus|maxvcpus|cpus|cap|kernel_format|load_address|entry|serial|cmdline|isa_debug_exit|on_crash|xyz|vif", value in "[-0-9a-z\"'\\[\\],;#{}= ._]{0,20}") {
        if let Err(errors) = parse("p.cfg", &format!("{GOOD}{key} = {value}\n")) {
            for error in errors {
                prop_assert!(error.to_string().starts_with("p.cfg:"));
                prop_assert!((1..=6).contains(&error.line), "{}", error);
            }
        }
    }
}

fn cpuid_error(value: &str) -> String {
    error(&format!("{GOOD}cpuid = {value}\n")).strip_prefix("a.cfg:4: cpuid: ").unwrap().to_string()
}

#[test]
fn cpuid_in_both_forms() {
    use crate::vcpu::features::{CpuidMask, Word};
    assert_eq!(good("").cpuid, CpuidMask::default());
    assert_eq!(good("cpuid = \"host\"\n").cpuid, CpuidMask::default());
    let mask = good(
        "cpuid = \"host,tm=0,sse3=0, sse4.1=1 ,sse4_2=1,tsc-deadline=x,tsc_adjust=k,avx512ifma=0,svm_npt=0,family=0x1f,model=26,stepping=x,nc=x\"\n",
    )
    .cpuid;
    assert_eq!(mask.of(Word::L1Edx), (1 << 29, 0));
    assert_eq!(mask.of(Word::L1Ecx), (1, 1 << 19 | 1 << 20));
    assert_eq!(mask.of(Word::L7Ebx), (1 << 21, 0));
    assert_eq!(mask.apply(Word::Signature, 0x306c3), 0x0101_0fa3, "family 15 + 16, model 16 + 10, the host's stepping");
    assert_eq!(good("cpuid = \"host,family=6,model=60\"\n").cpuid.apply(Word::Signature, 0xffff_ffff), 0xf003_f6cf);
    let last = good("cpuid = \"host,sse3=0,sse3=1,aes=1,aes=x\"\n").cpuid;
    assert_eq!(last.of(Word::L1Ecx), (0, 1), "the last word counts");

    let mask = good(
        "cpuid = [\"0x1:ecx=xxxxxxxxxx0xxxxxxxxxxxxxxxxxxxx1,edx=kkkkkkkkkkkkkkkkssssssssssssss0x\", \"7,0:ebx=0xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\",\
         \"0x4:eax=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\", \"1:ebx=xxxxxxxxxxxxxxxxxxxxxxxx00000001\"]\n",
    )
    .cpuid;
    assert_eq!(mask.of(Word::L1Ecx), (1 << 21, 1));
    assert_eq!(mask.of(Word::L1Edx), (1 << 1, 0));
    assert_eq!(mask.of(Word::L7Ebx), (1 << 31, 0));
    assert_eq!(mask.apply(Word::Brand, 0x0808), 0x0801);
}

#[test]
fn cpuid_that_cannot_be() {
    for (value, text) in [
        ("\"sse3=0\"", "must begin with \"host\", or be a list of strings"),
        ("\"host,sse3\"", "\"sse3\" is not NAME=VALUE"),
        ("\"host,\"", "\"\" is not NAME=VALUE"),
        ("\"host,sse9=0\"", "no feature is named \"sse9\""),
        ("\"host,.=0\"", "no feature is named \".\""),
        ("\"host,sse3=2\"", "sse3=2: must be 0, 1, x, k or s"),
        ("\"host,model=256\"", "model=256: must be a number of 0 to 255, or x, k or s"),
        ("\"host,maxleaf=0\"", "maxleaf=0: must be a number of 1 to 22, or x, k or s"),
        ("\"host,maxleaf=0x17\"", "maxleaf=0x17: must be a number of 1 to 22, or x, k or s"),
        ("\"host,proccount=2\"", "proccount cannot be changed"),
        ("\"host,apic=0\"", "apic cannot be changed"),
        ("\"host,osxsave=0\"", "osxsave cannot be changed"),
        ("\"host,svm_npt=1\"", "svm_npt cannot be changed"),
        ("[\"0x1\"]", "\"0x1\" is not LEAF:REGISTER=BITS or LEAF,SUBLEAF:REGISTER=BITS"),
        ("[\"1:esi=0\"]", "\"1:esi=0\" is not LEAF:REGISTER=BITS or LEAF,SUBLEAF:REGISTER=BITS"),
        ("[\"x:ecx=0\"]", "\"x:ecx=0\" is not LEAF:REGISTER=BITS or LEAF,SUBLEAF:REGISTER=BITS"),
        ("[\"1:ecx=01\"]", "\"01\" is not 32 characters 0, 1, x, k and s"),
        (
            "[\"1:ecx=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx2\"]",
            "\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx2\" is not 32 characters 0, 1, x, k and s",
        ),
        ("[\"4,0:eax=0xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"]", "4,0:eax cannot be changed"),
        ("[\"7,2:edx=0xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"]", "7,2:edx cannot be changed"),
        ("[\"1:ebx=xxxxxxx0xxxxxxxxxxxxxxxxxxxxxxxx\"]", "1:ebx bit 24 cannot be changed"),
        ("[\"0:eax=00000000000000000000000000000000\"]", "0:eax to zero cannot be changed"),
        ("[1]", "must be a list of strings, not a number"),
        ("1", "must be a string or a list of strings, not a number"),
    ] {
        assert_eq!(cpuid_error(value), text, "{value}");
    }
}
