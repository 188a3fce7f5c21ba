// The JUBE file under Debian's jube: every job ends, and the table has its figures.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "tests/launch/program.h"
#include "tests/source_dir.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

class Jube : public testing::Test {
 protected:
  void SetUp() override {
    enter_test_folder("jube");
    fs::create_directories("configs");
    fs::copy(fs::path(TMAMBA_SOURCE_DIR) / "configs" / "studies", "configs/studies");
    // The shipped file with fewer ranks and repeats.
    std::ifstream in("configs/studies/jube.xml");
    std::ostringstream text;
    text << in.rdbuf();
    std::string xml = text.str();
    for (const auto& [from, to] : {std::pair<std::string, std::string>{">1,2,4,8<", ">1,2<"}, {">0,1,2<", ">0<"}}) {
      const size_t at = xml.find(from);
      ASSERT_NE(at, std::string::npos) << from;
      xml.replace(at, from.size(), to);
    }
    std::ofstream("configs/studies/jube.xml") << xml;
    const std::string line = command_line("", 0);  // 'PROGRAM' and a blank
    setenv("TRANSMAMBA", line.substr(1, line.find('\'', 1) - 1).c_str(), 1);
  }
  void TearDown() override {
    const fs::path folder = fs::current_path();
    fs::current_path("/");
    fs::remove_all(folder);
  }
};

TEST_F(Jube, RunsTheStudy) {
  const Outcome run = shell("jube run configs/studies/jube.xml --hide-animation");
  ASSERT_EQ(run.code, 0) << run.output;
  const Outcome result = shell("jube result runs/jube -a");
  ASSERT_EQ(result.code, 0) << result.output;
  const size_t header = result.output.find("axis,ranks,repeat,step_ms");
  ASSERT_NE(header, std::string::npos) << result.output;
  std::istringstream lines(result.output.substr(header));
  int rows = 0;
  std::string line;
  std::getline(lines, line);
  while (std::getline(lines, line) && !line.empty()) {
    std::istringstream cells(line);
    std::string axis, ranks, repeat, step;
    std::getline(cells, axis, ','), std::getline(cells, ranks, ','), std::getline(cells, repeat, ',');
    std::getline(cells, step, ',');
    EXPECT_GT(std::stod(step), 0) << line;
    ++rows;
  }
  EXPECT_EQ(rows, 6) << result.output;
}

}  // namespace
}  // namespace tmamba
