//! NVML's functions, safe to call.
//!
//! Source: `nvml.h` of the NVML API reference: names, argument types, sizes of buffers, codes.

use std::ffi::{CStr, OsStr};
use std::os::raw::{c_char, c_int, c_uint, c_void};

use crate::sys::{self, Symbols};

/// A function failed.
pub(crate) struct Failure {
    /// Which one, in our words.
    pub(crate) step: &'static str,
    /// NVML's code.
    pub(crate) code: c_int,
    /// NVML's words.
    pub(crate) text: String,
}

/// A device of NVML: valid until the shutdown.
#[derive(Clone, Copy)]
pub(crate) struct Device(pub(crate) *mut c_void);

/// `NVML_ERROR_NOT_SUPPORTED`, `_NOT_FOUND`, `_LIBRARY_NOT_FOUND`, `_FUNCTION_NOT_FOUND`,
/// `_INVALID_ARGUMENT`.
const INVALID_ARGUMENT: c_int = 2;
const NOT_SUPPORTED: c_int = 3;
const NOT_FOUND: c_int = 6;
const LIBRARY_NOT_FOUND: c_int = 12;
const FUNCTION_NOT_FOUND: c_int = 13;
/// Larger than any text NVML gives (`NVML_DEVICE_UUID_V2_BUFFER_SIZE` and the name's are 96).
pub(crate) const TEXT: usize = 128;

/// The loaded library.
pub(crate) struct Nvml {
    symbols: Symbols,
}

type Result<T> = std::result::Result<T, Failure>;

impl Nvml {
    pub(crate) fn load(library: &OsStr) -> Result<Self> {
        match Symbols::load(library) {
            Ok(symbols) => Ok(Self { symbols }),
            Err(text) => Err(Failure {
                step: "load",
                code: LIBRARY_NOT_FOUND,
                text,
            }),
        }
    }

    fn check(&self, step: &'static str, code: Option<c_int>) -> Result<()> {
        match code {
            Some(0) => Ok(()),
            Some(code) => Err(Failure {
                step,
                code,
                text: self.symbols.error_text(code),
            }),
            None => Err(Failure {
                step,
                code: FUNCTION_NOT_FOUND,
                text: "this driver's NVML does not have the function".to_owned(),
            }),
        }
    }

    pub(crate) fn init(&self) -> Result<()> {
        self.check("init", self.symbols.plain(c"nvmlInit_v2"))
    }

    pub(crate) fn shutdown(&self) {
        // The process ends next; there is nothing to do about a failure.
        let _ = self.symbols.plain(c"nvmlShutdown");
    }

    pub(crate) fn driver_version(&self) -> Result<String> {
        let mut text = [0; TEXT];
        let code = self
            .symbols
            .system_text(c"nvmlSystemGetDriverVersion", &mut text);
        self.check("driver version", code)?;
        Ok(string(&text))
    }

    pub(crate) fn count(&self) -> Result<u32> {
        let mut count: c_uint = 0;
        self.check(
            "count",
            self.symbols
                .system_number(c"nvmlDeviceGetCount_v2", &mut count),
        )?;
        Ok(count)
    }

    pub(crate) fn device(&self, index: u32) -> Result<Device> {
        let mut device = Device(std::ptr::null_mut());
        let code = self
            .symbols
            .handle(c"nvmlDeviceGetHandleByIndex_v2", index, &mut device);
        self.check("device", code)?;
        Ok(device)
    }

    fn text(&self, step: &'static str, function: &CStr, device: Device) -> Result<String> {
        let mut text = [0; TEXT];
        self.check(step, self.symbols.device_text(function, device, &mut text))?;
        Ok(string(&text))
    }

    fn number(&self, step: &'static str, function: &CStr, device: Device) -> Result<u32> {
        let mut number: c_uint = 0;
        self.check(
            step,
            self.symbols.device_number(function, device, &mut number),
        )?;
        Ok(number)
    }

    pub(crate) fn uuid(&self, device: Device) -> Result<String> {
        self.text("uuid", c"nvmlDeviceGetUUID", device)
    }

    pub(crate) fn name(&self, device: Device) -> Result<String> {
        self.text("name", c"nvmlDeviceGetName", device)
    }

    pub(crate) fn minor(&self, device: Device) -> Result<u32> {
        self.number("minor number", c"nvmlDeviceGetMinorNumber", device)
    }

    pub(crate) fn gpu_instance(&self, device: Device) -> Result<u32> {
        self.number("GPU instance", c"nvmlDeviceGetGpuInstanceId", device)
    }

    pub(crate) fn compute_instance(&self, device: Device) -> Result<u32> {
        self.number(
            "compute instance",
            c"nvmlDeviceGetComputeInstanceId",
            device,
        )
    }

    pub(crate) fn bus_id(&self, device: Device) -> Result<String> {
        let mut info = sys::PciInfo::default();
        self.check("PCI id", self.symbols.pci_info(device, &mut info))?;
        Ok(string(&info.bus_id))
    }

    pub(crate) fn mig_enabled(&self, device: Device) -> Result<bool> {
        let (mut current, mut pending): (c_uint, c_uint) = (0, 0);
        match self.symbols.mig_mode(device, &mut current, &mut pending) {
            // GPUs and drivers from before MIG.
            None | Some(NOT_SUPPORTED) => Ok(false),
            code => {
                self.check("MIG mode", code)?;
                Ok(current == 1)
            }
        }
    }

    pub(crate) fn max_instances(&self, device: Device) -> Result<u32> {
        self.number("MIG devices", c"nvmlDeviceGetMaxMigDeviceCount", device)
    }

    /// The MIG device at a place; `None` where there is none.
    pub(crate) fn instance(&self, device: Device, place: u32) -> Result<Option<Device>> {
        let mut instance = Device(std::ptr::null_mut());
        let code = self.symbols.instance(device, place, &mut instance);
        match code {
            Some(NOT_FOUND | INVALID_ARGUMENT) => Ok(None),
            code => {
                self.check("MIG device", code)?;
                Ok(Some(instance))
            }
        }
    }
}

/// The text in a buffer, up to its zero.
fn string(bytes: &[c_char]) -> String {
    let bytes: Vec<u8> = bytes
        .iter()
        .take_while(|byte| **byte != 0)
        .map(|byte| byte.to_ne_bytes()[0])
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
