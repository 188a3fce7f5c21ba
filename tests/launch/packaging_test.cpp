// The ways of cluster/ to install the trainer, as far as they can be tried without building an image: the image's
// packages, the Spack package, the module file.
#include <gtest/gtest.h>

#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

const fs::path kSource = TMAMBA_SOURCE_DIR;

std::string read_file(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

std::set<std::string> words_of(const std::string& text) {
  std::istringstream in(text);
  std::set<std::string> words;
  for (std::string word; in >> word;) words.insert(word);
  return words;
}

class Packaging : public testing::Test {
 protected:
  void SetUp() override {
    enter_test_folder(std::string("packaging-") + testing::UnitTest::GetInstance()->current_test_info()->name());
  }
  void TearDown() override {
    const fs::path folder = fs::current_path();
    fs::current_path("/");
    fs::remove_all(folder);
  }
};

// The image that runs has the package of every library that the program is linked with.
TEST_F(Packaging, ImageHasTheProgramsLibraries) {
  const std::string dockerfile = read_file(kSource / "cluster/Dockerfile");
  const size_t begin = dockerfile.find("apt-get install", dockerfile.rfind("\nFROM ")),
               end = dockerfile.find("&&", begin);
  ASSERT_NE(end, std::string::npos);
  const std::set<std::string> installed = words_of(dockerfile.substr(begin, end - begin));
  const Outcome needed = shell(
      "program=" + command_line("", 0) +
      "; for name in $(readelf -d $program | sed -n 's/.*(NEEDED).*\\[\\(.*\\)\\]/\\1/p'); do file=$(ldd $program | "
      "awk -v name=$name '$1 == name {print $3}'); case $file in /*) file=$(realpath $file); "
      "echo $name $({ dpkg -S $file || dpkg -S ${file#/usr}; } 2>/dev/null | sed 's/:.*//;q');; esac; done");
  ASSERT_EQ(needed.code, 0) << needed.output;
  std::istringstream lines(needed.output);
  int libraries = 0;
  for (std::string line; std::getline(lines, line); ++libraries) {
    std::istringstream words(line);
    std::string library, package;
    words >> library >> package;
    // Those of the CUDA build are copied; the compiler's and C's own are in every Debian; libopenblas0 chooses one.
    if (std::regex_search(library, std::regex("^(libcu|libnccl)"))) continue;
    if (std::set<std::string>{"libc6", "libgcc-s1", "libstdc++6"}.contains(package)) continue;
    if (package.starts_with("libopenblas0-")) package = "libopenblas0";
    EXPECT_TRUE(installed.contains(package)) << library << " is of " << package << ", which cluster/Dockerfile lacks";
  }
  EXPECT_GT(libraries, 5) << needed.output;
}

// Spack's package, with Spack's words replaced by ones that write down what is said: its options are CMake's.
TEST_F(Packaging, SpackPackageSetsOptionsThatAre) {
  std::ofstream("run.py") << R"python(
import sys, types
said = []
class CMakePackage:
    run_tests = False
    def define(self, name, value): return name
    def define_from_variant(self, name, variant):
        assert variant in [arguments[0] for word, arguments in said if word == "variant"], variant
        return name
module = types.ModuleType("spack.package")
module.CMakePackage = CMakePackage
for word in ["license", "version", "variant", "depends_on", "generator"]:
    setattr(module, word, lambda *arguments, word=word, **named: said.append((word, arguments)))
sys.modules["spack"], sys.modules["spack.package"] = types.ModuleType("spack"), module
names = {}
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), names)
for option in names["Transmamba"]().cmake_args(): print("option", option)
for word, arguments in said: print(word, arguments[0])
)python";
  const Outcome outcome =
      shell("python3 run.py '" + (kSource / "cluster/spack/packages/transmamba/package.py").string() + "'");
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  const std::string cmake = read_file(kSource / "CMakeLists.txt");
  std::istringstream lines(outcome.output);
  int options = 0;
  for (std::string word, value; lines >> word && std::getline(lines, value);) {
    if (word != "option") continue;
    ++options;
    EXPECT_TRUE(std::regex_search(cmake, std::regex("(option|set)\\(" + value.substr(1) + " "))) << value;
  }
  EXPECT_EQ(options, 3) << outcome.output;
  // Every library that CMake looks for is depended on.
  for (const char* name :
       {"mpi", "hdf5", "boost", "tomlplusplus", "nlohmann-json", "openblas", "sentencepiece", "openssl"})
    EXPECT_NE(outcome.output.find(std::string("depends_on ") + name), std::string::npos) << name << "\n"
                                                                                         << outcome.output;
}

// The module file under Lmod, beside a module of MPI.
TEST_F(Packaging, ModuleLoads) {
  fs::create_directories("modules/transmamba");
  fs::create_directories("modules/openmpi");
  fs::copy(kSource / "cluster/modulefiles/transmamba.lua", "modules/transmamba/0.1.0.lua");
  std::ofstream("modules/openmpi/4.1.lua") << "setenv(\"MPI_IS_LOADED\", \"yes\")\n";
  const Outcome outcome = shell(
      "export MODULEPATH=$PWD/modules LMOD_SETTARG_CMD=: HOME=$PWD; bash -c '. /usr/share/lmod/lmod/init/bash && "
      "module load "
      "transmamba && echo path ${PATH%%:*} && echo source $TRANSMAMBA_SOURCE && echo mpi $MPI_IS_LOADED && module "
      "whatis "
      "transmamba' 2>&1");
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  for (const char* part : {"path /opt/transmamba/bin\n", "source /opt/transmamba/share/transmamba\n", "mpi yes\n",
                           "distributed trainer (0.1.0)"}) {
    EXPECT_NE(outcome.output.find(part), std::string::npos) << part << " is missing in\n" << outcome.output;
  }
}

}  // namespace
}  // namespace tmamba
