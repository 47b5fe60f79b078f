//! Owns the compiled kernels: one image of each file of `engine/kernels` for each kind of card.

/// What a card runs.
pub(super) enum Image {
    /// Machine code of its kind.
    Cubin(&'static [u8]),
    /// What the driver compiles when it loads it: for cards that came after this build.
    Ptx(&'static str),
}

/// The kernels of one file.
pub(super) struct Module {
    ptx: &'static str,
    /// For sm_80, sm_90a and sm_120.
    cubins: [&'static [u8]; 3],
}

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        [$(Module {
            ptx: include_str!(concat!("../../kernels/built/", $name, ".ptx")),
            cubins: [
                include_bytes!(concat!("../../kernels/built/", $name, ".sm_80.cubin")),
                include_bytes!(concat!("../../kernels/built/", $name, ".sm_90a.cubin")),
                include_bytes!(concat!("../../kernels/built/", $name, ".sm_120.cubin")),
            ],
        }),*]
    };
}

static MODULES: &[Module] = &modules![
    "adamw",
    "attention_backward",
    "attention_forward",
    "cross_entropy",
    "decode",
    "fill",
    "glu",
    "grouped_lora",
    "linear",
    "norm",
    "quant",
    "rope",
    "rows",
];

/// Every module there is.
pub(super) fn modules() -> &'static [Module] {
    MODULES
}

impl Module {
    /// The image for a card of a compute capability. Machine code runs on the later cards of its generation too, but for
    /// Hopper's own.
    pub fn image(&self, capability: (i32, i32)) -> Image {
        match capability {
            (8, _) => Image::Cubin(self.cubins[0]),
            (9, 0) => Image::Cubin(self.cubins[1]),
            (12, _) => Image::Cubin(self.cubins[2]),
            _ => Image::Ptx(self.ptx),
        }
    }

    /// The names of its kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &'static str> {
        let entries = self.ptx.split(".entry ").skip(1);
        entries.filter_map(|text| text.split(['(', '\n', ' ']).next())
    }

    /// Whether it has a variable of this name.
    pub fn has_global(&self, name: &str) -> bool {
        let declared = format!(" {name}[");
        self.ptx
            .lines()
            .any(|line| line.contains(".global") && line.contains(&declared))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_has_kernels_and_no_two_share_a_name() {
        let mut names: Vec<_> = modules().iter().flat_map(Module::kernels).collect();
        assert!(modules().iter().all(|module| module.kernels().count() > 0));
        let n = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), n, "{names:?}");
        assert!(names.contains(&"adamw_update") && names.contains(&"attention_forward_128"));
    }

    #[test]
    fn a_card_gets_machine_code_of_its_generation_and_an_unknown_one_ptx() {
        let module = &modules()[0];
        let is_cubin = |capability, i: usize| match module.image(capability) {
            Image::Cubin(bytes) => std::ptr::eq(bytes, module.cubins[i]),
            Image::Ptx(_) => false,
        };
        assert!(is_cubin((8, 0), 0) && is_cubin((8, 9), 0) && is_cubin((9, 0), 1));
        assert!(is_cubin((12, 0), 2));
        assert!(matches!(module.image((10, 0)), Image::Ptx(_)));
    }
}
