mod banner;
mod console;
mod data_dir;
mod events;
mod leftovers;
mod sample;
mod serve_status;
mod supervise;

pub(crate) use self::data_dir::Paths;

pub(crate) fn run(_: crate::args::UpArgs) -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
