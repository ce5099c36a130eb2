//! Packs the hypervisor and its modules into an ISO that GRUB boots, from CD or disk, under BIOS and UEFI.
//!
//! GRUB itself is made by `grub-mkimage` with the few modules that are needed built in (reading many small files through an emulated
//! BIOS is slow) and kept in a cache folder; only `xorriso` runs for every image.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::config;

#[derive(Clone, PartialEq, Eq, Debug)]
enum Source {
    File(PathBuf),
    Bytes(Vec<u8>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Module {
    name: String,
    source: Source,
}

/// The files that GRUB loads beside the hypervisor, each under a unique name.
#[derive(Clone, Default, Debug)]
pub struct Modules {
    modules: Vec<Module>,
}

impl Modules {
    /// Adds a host file under its own name, made unique; a file that is already there is not added again. Returns the name.
    pub fn add_file(&mut self, path: &Path) -> String {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let wanted = path.file_name().map_or_else(|| "file".into(), |n| n.to_string_lossy().into_owned());
        self.add(&wanted, Source::File(path))
    }

    /// Adds generated contents under `wanted`, made unique. Returns the name.
    pub fn add_bytes(&mut self, wanted: &str, bytes: Vec<u8>) -> String {
        self.add(wanted, Source::Bytes(bytes))
    }

    /// Adds a guest configuration and the files that it names, which are relative to `folder`. Its module name ends in `.cfg`.
    pub fn add_config(&mut self, wanted: &str, text: &str, folder: &Path) -> (String, Vec<config::MissingFile>) {
        let (text, missing) = config::pack(text, folder, self);
        let wanted = if wanted.ends_with(".cfg") { wanted.to_owned() } else { format!("{wanted}.cfg") };
        (self.add(&wanted, Source::Bytes(text.into_bytes())), missing)
    }

    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.modules.iter().map(|m| m.name.as_str()).collect()
    }

    fn add(&mut self, wanted: &str, source: Source) -> String {
        if let (Source::File(_), Some(module)) = (&source, self.modules.iter().find(|m| m.source == source)) {
            return module.name.clone();
        }
        // A module's name is one word on its command line, and a file name for GRUB.
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-+".contains(c) { c } else { '_' };
        let wanted: String = wanted.chars().map(plain).collect();
        let taken: HashSet<&str> = self.names().into_iter().collect();
        let (stem, extension) = match wanted.rsplit_once('.') {
            Some((stem, extension)) => (stem, format!(".{extension}")),
            _ => (wanted.as_str(), String::new()),
        };
        let name = std::iter::once(wanted.clone())
            .chain((2..).map(|n| format!("{stem}-{n}{extension}")))
            .find(|name| !taken.contains(name.as_str()))
            .expect("there is always a next number");
        self.modules.push(Module { name: name.clone(), source });
        name
    }
}

/// GRUB's boot images and where they are kept.
#[derive(Clone, Debug)]
pub struct Grub {
    bios: PathBuf,
    efi: PathBuf,
    hybrid_mbr: PathBuf,
}

const COMMON_MODULES: [&str; 9] =
    ["iso9660", "multiboot2", "linux", "normal", "configfile", "test", "search", "search_fs_file", "echo"];
/// For the peers of the benchmark.
const PC_MODULES: [&str; 1] = ["multiboot"];
const PC_FOLDER: &str = "/usr/lib/grub/i386-pc";
const EFI_FOLDER: &str = "/usr/lib/grub/x86_64-efi";
/// The firmware says which partition it started from, not where the CD's own file system is.
const EFI_EARLY_CONFIG: &str = "search --file --set=root /boot/bulkhead.elf\nset prefix=($root)/boot/grub\n";
/// Bytes of the FAT image that holds GRUB for UEFI: a 2.88-MB floppy.
const EFI_IMAGE_KIB: &str = "2880";

impl Grub {
    /// Makes the boot images in `cache`, or takes them from there.
    pub fn prepare(cache: &Path) -> Result<Self> {
        let version = output(Command::new("grub-mkimage").arg("--version"))?;
        let key = format!("{version}{COMMON_MODULES:?}{PC_MODULES:?}{EFI_EARLY_CONFIG}");
        let grub = Self {
            bios: cache.join("grub-bios.img"),
            efi: cache.join("grub-efi.img"),
            hybrid_mbr: Path::new(PC_FOLDER).join("boot_hybrid.img"),
        };
        let stamp = cache.join("grub.stamp");
        if fs::read_to_string(&stamp).is_ok_and(|s| s == key) && grub.bios.is_file() && grub.efi.is_file() {
            return Ok(grub);
        }
        fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let work = tempfile::tempdir_in(cache)?;
        let new = |name| work.path().join(name);
        run(Command::new("grub-mkimage")
            .args(["-O", "i386-pc-eltorito", "-d", PC_FOLDER, "-p", "/boot/grub", "-o"])
            .arg(new("bios"))
            .arg("biosdisk")
            .args(PC_MODULES)
            .args(COMMON_MODULES))?;
        fs::write(new("early.cfg"), EFI_EARLY_CONFIG)?;
        run(Command::new("grub-mkimage")
            .args(["-O", "x86_64-efi", "-d", EFI_FOLDER, "-p", "/boot/grub", "-c"])
            .arg(new("early.cfg"))
            .arg("-o")
            .arg(new("bootx64.efi"))
            .args(["part_gpt", "part_msdos", "fat", "all_video"])
            .args(COMMON_MODULES))?;
        let mtool = |name: &str| {
            let mut command = Command::new(name);
            command.arg("-i").arg(new("efi"));
            command
        };
        run(mtool("mformat").args(["-C", "-f", EFI_IMAGE_KIB, "::"]))?;
        run(mtool("mmd").args(["::/EFI", "::/EFI/BOOT"]))?;
        run(mtool("mcopy").arg(new("bootx64.efi")).arg("::/EFI/BOOT/BOOTX64.EFI"))?;
        fs::rename(new("bios"), &grub.bios)?;
        fs::rename(new("efi"), &grub.efi)?;
        fs::write(&stamp, key)?;
        Ok(grub)
    }
}

/// How GRUB starts a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Protocol {
    /// As Bulkhead is started.
    #[default]
    Multiboot2,
    /// As the test guest is, without modules. Under BIOS only.
    Multiboot1,
    /// Linux, with its one module as initramfs. Under BIOS only.
    Linux,
}

/// What goes into an ISO.
#[derive(Clone, Default, Debug)]
pub struct Image {
    /// The hypervisor's ELF file, or what is started in its place.
    pub hypervisor: PathBuf,
    pub protocol: Protocol,
    /// The hypervisor's command line.
    pub options: String,
    pub modules: Modules,
}

impl Image {
    /// The GRUB configuration that boots this image at once.
    #[must_use]
    pub fn grub_cfg(&self) -> String {
        let mut text = String::from(
            "set timeout=0\nset default=0\n\
             if [ \"$grub_platform\" = efi ]; then set gfxpayload=keep; else set gfxpayload=text; fi\n\
             menuentry Bulkhead {\n",
        );
        let (command, module_command) = match self.protocol {
            Protocol::Multiboot2 => ("multiboot2", "module2"),
            Protocol::Multiboot1 => ("multiboot", "module"),
            Protocol::Linux => ("linux", "initrd"),
        };
        text.push_str(&format!("  {command} /boot/bulkhead.elf"));
        for word in self.options.split_whitespace() {
            text.push(' ');
            text.push_str(&grub_quote(word));
        }
        text.push('\n');
        for Module { name, .. } in &self.modules.modules {
            text.push_str(&format!("  {module_command} /boot/{name}"));
            if self.protocol != Protocol::Linux {
                // A module's own command line starts with its name.
                text.push_str(&format!(" {name}"));
            }
            text.push('\n');
        }
        text.push_str("}\n");
        text
    }

    /// Writes the ISO to `out`.
    pub fn write(&self, grub: &Grub, out: &Path) -> Result<()> {
        let work = tempfile::tempdir()?;
        let mut files = Vec::new();
        graft(&mut files, "/boot/bulkhead.elf", &self.hypervisor)?;
        for (number, module) in self.modules.modules.iter().enumerate() {
            ensure!(module.name != "bulkhead.elf" && module.name != "grub", "a guest's file cannot be called {}", module.name);
            let at = format!("/boot/{}", module.name);
            match &module.source {
                Source::File(path) => graft(&mut files, &at, path)?,
                Source::Bytes(bytes) => {
                    let file = work.path().join(format!("module{number}"));
                    fs::write(&file, bytes)?;
                    graft(&mut files, &at, &file)?;
                }
            }
        }
        write_iso(grub, &self.grub_cfg(), files, out)
    }
}

/// Writes an ISO that boots a bare Linux, without any hypervisor.
pub fn write_linux(grub: &Grub, kernel: &Path, initramfs: &Path, command_line: &str, out: &Path) -> Result<()> {
    let mut files = Vec::new();
    graft(&mut files, "/boot/vmlinuz", kernel)?;
    graft(&mut files, "/boot/initrd.img", initramfs)?;
    let words: Vec<String> = command_line.split_whitespace().map(grub_quote).collect();
    let grub_cfg =
        format!("set timeout=0\nmenuentry Linux {{\n  linux /boot/vmlinuz {}\n  initrd /boot/initrd.img\n}}\n", words.join(" "));
    write_iso(grub, &grub_cfg, files, out)
}

/// A graft point of xorriso's: file `file` of the host at `at` in the ISO.
fn graft(list: &mut Vec<String>, at: &str, file: &Path) -> Result<()> {
    // In a graft point, '=' and '\\' are special.
    let file = file.to_str().with_context(|| format!("{} is not UTF-8", file.display()))?;
    list.push(format!("{at}={}", file.replace('\\', "\\\\").replace('=', "\\=")));
    Ok(())
}

fn write_iso(grub: &Grub, grub_cfg: &str, mut files: Vec<String>, out: &Path) -> Result<()> {
    let work = tempfile::tempdir()?;
    let config = work.path().join("grub.cfg");
    fs::write(&config, grub_cfg)?;
    graft(&mut files, "/boot/grub/grub.cfg", &config)?;
    graft(&mut files, "/boot/grub/bios.img", &grub.bios)?;
    graft(&mut files, "/boot/grub/efi.img", &grub.efi)?;
    // xorriso patches the BIOS image in the ISO (-boot-info-table), and adds to an existing output instead of replacing it.
    if out.exists() {
        fs::remove_file(out).with_context(|| format!("cannot replace {}", out.display()))?;
    }
    run(Command::new("xorriso")
        .args(["-report_about", "WARNING", "-as", "mkisofs", "-quiet", "-R", "-V", "BULKHEAD", "-graft-points"])
        .args(["-b", "boot/grub/bios.img", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"])
        .args(["--grub2-boot-info", "--grub2-mbr"])
        .arg(&grub.hybrid_mbr)
        .args(["--protective-msdos-label", "--efi-boot", "boot/grub/efi.img", "-efi-boot-part", "--efi-boot-image"])
        .arg("-o")
        .arg(out)
        .args(files))
}

/// `word` so that GRUB's script language takes it literally.
fn grub_quote(word: &str) -> String {
    if !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "=,.:/_-+%@".contains(c)) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_plain_words() {
        let mut modules = Modules::default();
        assert_eq!(modules.add_bytes("a b.cfg", vec![]), "a_b.cfg");
        assert_eq!(modules.add_bytes("a b.cfg", vec![]), "a_b-2.cfg");
        assert_eq!(modules.add_bytes("a;b.cfg", vec![1]), "a_b-3.cfg");
        assert_eq!(modules.add_bytes(".cfg", vec![]), ".cfg");
        assert_eq!(modules.add_bytes(".cfg", vec![]), "-2.cfg");
        assert_eq!(modules.add_config("guest", "name = \"x\"\n", Path::new("/")).0, "guest.cfg");
    }

    #[test]
    fn grub_takes_options_literally() {
        let mut modules = Modules::default();
        modules.add_bytes("x.cfg", vec![]);
        let image = Image { options: "com1=115200,8n1  odd=$x;'y'".into(), modules, ..Image::default() };
        let cfg = image.grub_cfg();
        assert!(
            cfg.contains("  multiboot2 /boot/bulkhead.elf com1=115200,8n1 'odd=$x;'\\''y'\\'''\n  module2 /boot/x.cfg x.cfg\n}"),
            "{cfg}"
        );
        assert!(cfg.starts_with("set timeout=0\n"));
        let cfg = Image { protocol: Protocol::Linux, options: "quiet".into(), ..image }.grub_cfg();
        assert!(cfg.contains("  linux /boot/bulkhead.elf quiet\n  initrd /boot/x.cfg\n}"), "{cfg}");
    }
}
