-- Lmod module of an installed trainer: copy to MODULEPATH/transmamba/0.1.0.lua and set `prefix`.
--   cmake --install build/cuda --prefix /opt/transmamba
local prefix = "/opt/transmamba"

whatis("TransMamba: distributed trainer (" .. myModuleVersion() .. ")")
help("transmamba --help; cluster jobs: transmamba submit --help, " .. prefix .. "/share/transmamba/cluster/README.md")

-- The MPI library it was built with, for the same PMIx; CUDA and NCCL where it was built with them.
depends_on("openmpi")

prepend_path("PATH", pathJoin(prefix, "bin"))
setenv("TRANSMAMBA_SOURCE", pathJoin(prefix, "share/transmamba"))
