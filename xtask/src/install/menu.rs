//! `/etc/grub.d/20_linux_bulkhead` on made-up machines: run by dash, with GRUB's own library; what it writes is checked by GRUB's own parser.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::Assets;
use crate::package::debian_version;

/// Answers for the folders of a made-up machine; `DISKS` is replaced by lines of a `case`.
const GRUB_PROBE: &str = r#"#!/bin/sh
target= path= device=
while [ $# -gt 0 ]; do
    case "$1" in
        --target=*) target="${1#*=}" ;;
        -t) target="$2"; shift ;;
        --device) device="$2"; shift ;;
        *) path="$1" ;;
    esac
    shift
done
if [ -z "$device" ]; then
    [ -e "$path" ] || exit 1
    case "$path" in
DISKS
        *) device=/dev/sda1 ;;
    esac
fi
case "$target,$device" in
    device,*) echo "$device" ;;
    fs,*) echo ext2 ;;
    partmap,*) echo gpt ;;
    abstraction,/dev/mapper/*) echo lvm ;;
    fs_uuid,*) echo "uuid-of-${device##*/}" ;;
esac
"#;

/// A made-up machine.
pub struct Setting {
    folder: TempDir,
    script: PathBuf,
    check: PathBuf,
    variables: Vec<(&'static str, String)>,
    disks: String,
    /// The folder whose files GRUB finds below its own root: a file system mounted here.
    mounted: Option<PathBuf>,
    /// Instead of the folder's own `boot`.
    boot: Option<PathBuf>,
}

/// What the script made of it.
struct Menu {
    text: String,
    warnings: String,
}

impl Setting {
    /// One version and nothing else.
    fn new(assets: &Assets) -> Result<Self> {
        let folder = tempfile::tempdir_in(&assets.work)?;
        let setting = Self {
            script: assets.root.join("boot/package/grub/20_linux_bulkhead"),
            check: assets.check.clone(),
            variables: Vec::new(),
            disks: String::new(),
            mounted: None,
            boot: None,
            folder,
        };
        fs::create_dir_all(setting.path("etc/bulkhead/auto"))?;
        setting.put("boot/bulkhead-1.2.0.elf.gz", b"")?;
        Ok(setting)
    }

    /// A machine without guests, whose `/boot` is this one.
    pub fn of_boot(assets: &Assets, boot: PathBuf) -> Result<Self> {
        Ok(Self { boot: Some(boot), ..Self::new(assets)? })
    }

    /// The menu has these versions in this order, and the first entry starts `first`.
    pub fn expect_versions(&self, first: &str, versions: &[&str]) -> Result<()> {
        let menu = self.run()?;
        let found: Vec<&str> = menu.ids().into_iter().filter(|id| !id.ends_with("recovery")).skip(2).collect();
        let wanted: Vec<String> = versions.iter().map(|v| format!("bulkhead-{}", debian_version(v))).collect();
        menu.expect(found == wanted, &format!("versions {found:?}"))?;
        let start = menu.words("bulkhead", "multiboot2")?.concat();
        let image = format!("/bulkhead-{}.elf.gz", debian_version(first));
        menu.expect(start.first().is_some_and(|path| path.ends_with(&image)), "the first entry")
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn put(&self, path: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
        fs::write(&path, bytes)?;
        Ok(path)
    }

    /// A guest with a kernel, which starts by itself.
    fn guest(&self, name: &str, kernel: &Path) -> Result<()> {
        let kernel = kernel.to_str().context("UTF-8")?.replace('\\', "\\\\").replace('"', "\\\"");
        let config = format!(
            "name = \"{}\"\nmemory = 16\nkernel = \"{kernel}\"\n",
            name.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
        );
        self.put(&format!("etc/bulkhead/{name}.cfg"), config.as_bytes())?;
        Ok(symlink(format!("../{name}.cfg"), self.path(&format!("etc/bulkhead/auto/{name}.cfg")))?)
    }

    fn run(&self) -> Result<Menu> {
        let program = |name: &str, text: &str| -> Result<PathBuf> {
            let path = self.put(name, text.as_bytes())?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            Ok(path)
        };
        let probe = program("bin/grub-probe", &GRUB_PROBE.replace("DISKS", &self.disks))?;
        let strip = self
            .mounted
            .as_ref()
            .map_or_else(String::new, |folder| format!("    {folder:?}/*) echo \"${{1#{}}}\" ;;\n", folder.display()));
        let relative =
            program("bin/grub-mkrelpath", &format!("#!/bin/sh\ncase \"$1\" in\n{strip}    *) echo \"$1\" ;;\nesac\n"))?;
        let mut command = Command::new("dash");
        command.arg(&self.script).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("TMPDIR", self.folder.path());
        command.env("grub_probe", probe).env("grub_mkrelpath", relative).env("bulkhead_check", &self.check);
        command
            .env("bulkhead_boot", self.boot.clone().unwrap_or_else(|| self.path("boot")))
            .env("bulkhead_etc", self.path("etc/bulkhead"));
        let output =
            command.envs(self.variables.iter().map(|(name, value)| (name, value))).output().context("cannot run dash")?;
        let text = String::from_utf8(output.stdout)?;
        let warnings = String::from_utf8(output.stderr)?;
        ensure!(output.status.success(), "the script ended with {}:\n{warnings}", output.status);
        // GRUB's checker complains of a script without commands.
        let menu = self.put("grub.cfg", format!("true\n{text}").as_bytes())?;
        let check = Command::new("grub-script-check").arg(menu).output().context("cannot run grub-script-check")?;
        ensure!(check.status.success(), "GRUB does not understand the menu: {}\n{text}", String::from_utf8_lossy(&check.stderr));
        let left =
            fs::read_dir(self.folder.path())?.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("tmp.")).count();
        ensure!(left == 0, "the script leaves files behind");
        Ok(Menu { text, warnings })
    }
}

impl Menu {
    fn expect(&self, good: bool, what: &str) -> Result<()> {
        ensure!(good, "{what}\nmenu:\n{}\nwarnings:\n{}", self.text, self.warnings);
        Ok(())
    }

    /// The ids of the entries and submenus, in order.
    fn ids(&self) -> Vec<&str> {
        let id = |line: &'_ str| -> Option<usize> { line.find("$menuentry_id_option '") };
        self.text
            .lines()
            .filter_map(|line| Some(&line[id(line)? + "$menuentry_id_option '".len()..]))
            .filter_map(|rest| rest.split('\'').next())
            .collect()
    }

    /// The lines of an entry.
    fn entry(&self, id: &str) -> Result<Vec<&str>> {
        let mark = format!("$menuentry_id_option '{id}' {{");
        let mut lines = self.text.lines().map(str::trim).skip_while(|l| !l.ends_with(&mark));
        lines.next().with_context(|| format!("no entry {id} in\n{}", self.text))?;
        Ok(lines.take_while(|l| *l != "}").collect())
    }

    /// The words of those of an entry's lines that start with `command`, as a shell splits them, which quotes like GRUB does.
    fn words(&self, id: &str, command: &str) -> Result<Vec<Vec<String>>> {
        let mut all = Vec::new();
        for line in self.entry(id)?.into_iter().filter(|l| l.split(' ').next() == Some(command)) {
            let output = Command::new("dash").arg("-c").arg(format!("printf '%s\\0' {line}")).output()?;
            let words = String::from_utf8(output.stdout)?;
            all.push(words.split_terminator('\0').skip(1).map(str::to_owned).collect());
        }
        Ok(all)
    }
}

/// A multiboot1 kernel.
fn kernel() -> Vec<u8> {
    const FLAGS: u32 = 1 << 16;
    let words =
        [0x1bad_b002, FLAGS, 0u32.wrapping_sub(0x1bad_b002 + FLAGS), 0x10_0000, 0x10_0000, 0x10_0040, 0x10_0040, 0x10_0000];
    let mut image: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    image.resize(64, 0x90);
    image
}

pub fn as_installed(assets: &Assets) -> Result<()> {
    let setting = Setting::new(assets)?;
    let kernel = setting.put("boot/kernel", &kernel())?;
    setting.guest("web", &kernel)?;
    setting.guest("db", &kernel)?;
    fs::remove_file(setting.path("etc/bulkhead/auto/db.cfg"))?;
    let menu = setting.run()?;
    let ids = [
        "bulkhead",
        "bulkhead-advanced",
        "bulkhead-1.2.0",
        "bulkhead-1.2.0-recovery",
        "bulkhead-1.2.0-guest-db",
        "bulkhead-1.2.0-guest-web",
    ];
    menu.expect(menu.ids() == ids, &format!("entries {:?}", menu.ids()))?;
    let loaded = |id: &str| -> Result<Vec<String>> {
        Ok(menu.words(id, "module2")?.into_iter().filter_map(|w| w.last().cloned()).collect())
    };
    let kernel = kernel.display().to_string();
    menu.expect(loaded("bulkhead")? == ["web.cfg".to_owned(), kernel.clone()], "the guests of auto")?;
    menu.expect(loaded("bulkhead-1.2.0-guest-db")? == ["db.cfg".to_owned(), kernel], "one guest alone")?;
    let recovery = menu.words("bulkhead-1.2.0-recovery", "multiboot2")?.concat();
    menu.expect(recovery.iter().any(|w| w == "autostart=none"), "recovery starts no guest")?;
    let entry = menu.entry("bulkhead")?;
    let at = |wanted: &str| entry.iter().position(|l| l.starts_with(wanted));
    let order = [at("insmod gzio"), at("insmod multiboot2"), at("search "), at("multiboot2 "), at("module2 ")];
    menu.expect(order.iter().all(Option::is_some) && order.is_sorted(), "the order of commands")?;
    // One file system: it is looked for once.
    menu.expect(
        entry.iter().filter(|l| l.starts_with("search ")).count() == 2,
        "where the files are, for hypervisor and guests",
    )?;
    menu.expect(!menu.warnings.contains("Warning"), "no warnings")
}

pub fn without_hypervisor(assets: &Assets) -> Result<()> {
    let setting = Setting::new(assets)?;
    fs::remove_file(setting.path("boot/bulkhead-1.2.0.elf.gz"))?;
    // What dpkg leaves while it works is no version.
    setting.put("boot/bulkhead-1.1.0.elf.gz.dpkg-keep", b"")?;
    let menu = setting.run()?;
    menu.expect(menu.text.is_empty(), "without a hypervisor there are no entries")?;
    let removed = Setting { check: setting.path("nothing"), ..Setting::new(assets)? };
    let menu = removed.run()?;
    menu.expect(menu.text.is_empty() && menu.warnings.is_empty(), "nothing is left of a removed package")
}

pub fn without_guests(assets: &Assets) -> Result<()> {
    let setting = Setting::new(assets)?;
    let menu = setting.run()?;
    menu.expect(
        menu.ids() == ["bulkhead", "bulkhead-advanced", "bulkhead-1.2.0", "bulkhead-1.2.0-recovery"],
        "entries without guests",
    )?;
    menu.expect(!menu.text.contains("module2") && menu.warnings.contains("no guest in"), "no modules, and a remark")?;
    fs::remove_dir_all(setting.path("etc"))?;
    setting.run().map(drop)
}

pub fn odd_names(assets: &Assets) -> Result<()> {
    let setting = Setting::new(assets)?;
    let names =
        ["it's a \"kernel\"", "$root {x}; echo `y` | z", "back\\slash & 'quotes'", "-dash *?[a]", "  blanks  ", "#caf\u{e9}"];
    let mut kernels = Vec::new();
    for (n, name) in names.iter().enumerate() {
        kernels.push(setting.put(&format!("srv/my guests {n}/{name}"), &kernel())?);
        setting.guest(&format!("g{n} it's"), &kernels[n])?;
    }
    let menu = setting.run()?;
    let loaded = menu.words("bulkhead", "module2")?;
    for (n, path) in kernels.iter().enumerate() {
        let path = fs::canonicalize(path)?.display().to_string();
        // --nounzip PATH NAME
        menu.expect(loaded.iter().any(|w| w.len() == 3 && w[1] == path && w[2] == path), &format!("kernel {path}"))?;
        menu.expect(loaded.iter().any(|w| w[2] == format!("g{n} it's.cfg")), &format!("configuration {n}"))?;
        let alone = menu.words(&format!("bulkhead-1.2.0-guest-g{n} it'\\''s"), "module2")?;
        menu.expect(alone.len() == 2, &format!("guest {n} alone"))?;
    }
    menu.expect(loaded.len() == 2 * names.len() && !menu.warnings.contains("Warning"), "nothing else, and no warning")
}

pub fn broken_guest(assets: &Assets) -> Result<()> {
    let setting = Setting::new(assets)?;
    let kernel = setting.put("boot/kernel", &kernel())?;
    setting.guest("good", &kernel)?;
    setting.guest("missing", Path::new("/nonexistent/kernel"))?;
    for (name, text) in [("syntax", "this is no configuration\n"), ("key", "name = \"x\"\nmemroy = 5\n"), ("binary", "\0\0")] {
        setting.put(&format!("etc/bulkhead/{name}.cfg"), text.as_bytes())?;
        symlink(format!("../{name}.cfg"), setting.path(&format!("etc/bulkhead/auto/{name}.cfg")))?;
    }
    symlink("../gone.cfg", setting.path("etc/bulkhead/auto/gone.cfg"))?;
    setting.put("etc/bulkhead/alone.cfg", b"kernel = 5\n")?;
    let menu = setting.run()?;
    let guests: Vec<&str> = menu.ids().into_iter().filter(|id| id.contains("-guest-")).collect();
    menu.expect(guests == ["bulkhead-1.2.0-guest-good"], "only the good guest has an entry")?;
    menu.expect(menu.words("bulkhead", "module2")?.len() == 2, "only the good guest is loaded")?;
    for wanted in [
        "missing.cfg:3: kernel:",
        "syntax.cfg:1:",
        "key.cfg:2: memroy: unknown key",
        "binary.cfg:",
        "gone.cfg",
        "alone.cfg:1: kernel: must be a string",
    ] {
        menu.expect(
            menu.warnings.lines().filter(|l| l.contains(wanted) && l.contains("Warning: bulkhead:")).count() == 1,
            &format!("one warning with {wanted:?}"),
        )?;
    }
    Ok(())
}

pub fn several_versions(assets: &Assets) -> Result<()> {
    let setting = Setting::new(assets)?;
    for version in ["1.10.0", "1.9.3", "1.10.0~rc2"] {
        setting.put(&format!("boot/bulkhead-{version}.elf.gz"), b"")?;
    }
    // Built by hand, not compressed.
    setting.put("boot/bulkhead-1.11.0.elf", b"")?;
    let menu = setting.run()?;
    let versions: Vec<&str> = menu.ids().into_iter().filter(|id| !id.ends_with("recovery")).skip(2).collect();
    let wanted = ["1.11.0", "1.10.0", "1.10.0~rc2", "1.9.3", "1.2.0"].map(|v| format!("bulkhead-{v}"));
    menu.expect(versions == wanted, &format!("newest first, not {versions:?}"))?;
    let first = menu.words("bulkhead", "multiboot2")?.concat();
    menu.expect(first.first().is_some_and(|p| p.ends_with("/boot/bulkhead-1.11.0.elf")), "the newest is the default")?;
    setting.put("boot/bulkhead-1.12.0 (old).elf.gz", b"")?;
    let menu = setting.run()?;
    menu.expect(menu.warnings.contains("not a version") && menu.ids().len() == 12, "what is no version is left out")
}

pub fn separate_boot(assets: &Assets) -> Result<()> {
    let mut setting = Setting::new(assets)?;
    let boot = setting.path("boot");
    setting.disks = format!("        {boot:?}/*) device=/dev/sdb2 ;;\n        */srv/*) device=/dev/mapper/vg-srv ;;\n");
    setting.mounted = Some(boot);
    let kernel = setting.put("boot/kernel", &kernel())?;
    let ramdisk = setting.put("srv/ramdisk", b"070701")?;
    setting.guest("g", &kernel)?;
    let config = setting.path("etc/bulkhead/g.cfg");
    fs::write(&config, format!("{}ramdisk = {ramdisk:?}\n", fs::read_to_string(&config)?))?;
    let menu = setting.run()?;
    let steps: Vec<&str> = menu
        .entry("bulkhead")?
        .into_iter()
        .filter(|l| ["search", "insmod lvm", "multiboot2", "module2"].iter().any(|s| l.starts_with(s)))
        .collect();
    let ramdisk = ramdisk.display();
    let wanted = [
        "search --no-floppy --fs-uuid --set=root uuid-of-sdb2".to_owned(),
        "multiboot2 '/bulkhead-1.2.0.elf.gz'".into(),
        "search --no-floppy --fs-uuid --set=root uuid-of-sda1".into(),
        format!("module2 --nounzip '{}' 'g.cfg'", fs::canonicalize(config)?.display()),
        "search --no-floppy --fs-uuid --set=root uuid-of-sdb2".into(),
        format!("module2 --nounzip '/kernel' '{}'", kernel.display()),
        "insmod lvm".into(),
        "search --no-floppy --fs-uuid --set=root uuid-of-vg-srv".into(),
        format!("module2 --nounzip '{ramdisk}' '{ramdisk}'"),
    ];
    menu.expect(steps == wanted, &format!("each file where it lies: {steps:#?}"))
}

pub fn unreadable_file(assets: &Assets) -> Result<()> {
    let mut setting = Setting::new(assets)?;
    setting.disks = "        */encrypted/*) exit 1 ;;\n".into();
    let good = setting.put("boot/kernel", &kernel())?;
    let bad = setting.put("encrypted/kernel", &kernel())?;
    setting.guest("good", &good)?;
    setting.guest("bad", &bad)?;
    let menu = setting.run()?;
    menu.expect(menu.warnings.contains("GRUB cannot read") && menu.warnings.contains("encrypted/kernel"), "a warning")?;
    let loaded = menu.words("bulkhead", "module2")?.concat();
    menu.expect(
        !loaded.iter().any(|w| w.contains("encrypted")) && loaded.iter().any(|w| w == "good.cfg"),
        "the others are loaded",
    )
}

pub fn options(assets: &Assets) -> Result<()> {
    let mut setting = Setting::new(assets)?;
    let mut options_with = |variables: &[(&'static str, &str)]| -> Result<(String, Menu)> {
        setting.variables = variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let menu = setting.run()?;
        let line = menu.words("bulkhead", "multiboot2")?.concat();
        Ok((line.get(1..).unwrap_or_default().join(" "), menu))
    };
    for (terminal, serial, wanted) in [
        ("console", "serial --unit=0", ""),
        ("serial", "serial --unit=0 --speed=115200 --word=8 --parity=no --stop=1", "com1=115200,8n1 console=com1"),
        ("gfxterm serial", "serial --speed=57600 --unit=1 --parity=even", "com2=57600,8e1 console=com2,vga"),
        ("serial", "serial --port=0x3e8 --speed=9600", "com1=9600,8n1,0x3e8,0 console=com1"),
        ("serial", "serial", "com1=9600,8n1 console=com1"),
    ] {
        let (line, menu) = options_with(&[("GRUB_TERMINAL_OUTPUT", terminal), ("GRUB_SERIAL_COMMAND", serial)])?;
        menu.expect(line == wanted && !menu.warnings.contains("Warning"), &format!("{serial:?} gives {line:?}"))?;
    }
    let (line, menu) = options_with(&[
        ("GRUB_TERMINAL_OUTPUT", "serial"),
        ("GRUB_SERIAL_COMMAND", "serial --speed=115200"),
        ("GRUB_CMDLINE_BULKHEAD", "console=vga noreboot"),
        ("GRUB_CMDLINE_BULKHEAD_DEFAULT", "loglvl=info frob='$x'"),
    ])?;
    menu.expect(line == "console=vga noreboot loglvl=info frob='$x'", "the administrator's own options win, literally")?;
    menu.expect(menu.warnings.contains("option frob: unknown"), "an unknown option is reported")?;
    let recovery = menu.words("bulkhead-1.2.0-recovery", "multiboot2")?.concat().join(" ");
    menu.expect(
        recovery.contains("console=vga noreboot loglvl=all") && !recovery.contains("loglvl=info"),
        "recovery has its own",
    )?;
    let (_, menu) = options_with(&[("GRUB_DISABLE_RECOVERY", "true"), ("GRUB_SAVEDEFAULT", "true")])?;
    menu.expect(!menu.text.contains("recovery") && menu.text.contains("savedefault"), "GRUB's own settings count")
}

pub fn flat(assets: &Assets) -> Result<()> {
    let mut setting = Setting::new(assets)?;
    setting.variables.push(("GRUB_DISABLE_SUBMENU", "y".into()));
    let menu = setting.run()?;
    menu.expect(menu.ids() == ["bulkhead", "bulkhead-1.2.0", "bulkhead-1.2.0-recovery"], "no submenu")?;
    menu.expect(!menu.text.contains("submenu"), "no submenu")
}
